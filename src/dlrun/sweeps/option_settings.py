"""Why the runs of a sweep cannot be composed: a setting that not all options of a swept group have, or none of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain

from omegaconf import DictConfig, ListConfig

from dlrun.registry import ConfigError, did_you_mean

UNKNOWN = re.compile(r"Could not override '([^']+)'|Could not delete from config. '([^']+)' does not exist")
"""What Hydra says of a setting that is not there."""

SHOWN = 4  # options of which a line says that they have a setting, or lack it
Choice = tuple[str, ...]
"""Words that choose options of groups, such as ("model=mlp", "data=digits")."""


def refusal(error: Exception, bases: Mapping[Choice, DictConfig]) -> ConfigError | None:
    """The one line for `error` of Hydra's; None where it is about something else, or where the choice makes no difference and
    nothing near the setting is there.

    Args:
        error: raised for a job.
        bases: the configuration of its choice, and of each other one that is known in its sweep, without single values.
    """
    found = UNKNOWN.search(str(error))
    if found is None:
        return None
    key = found[1] or found[2]
    settings = {choice: list(_dotted(base)) for choice, base in bases.items()}
    having = [choice for choice in bases if key in settings[choice]]
    lacking = [choice for choice in bases if key not in settings[choice]]
    if having and lacking:
        these, those = _differing(having, lacking)
        return ConfigError(f"{key}: {those} no such setting ({these})")
    parent, known = key.rpartition(".")[0], list(dict.fromkeys(chain.from_iterable(settings.values())))
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == parent]
    if not parent or not siblings or not lacking:
        return None
    near = did_you_mean(key, [name for name in known if name.count(".") == key.count(".")])
    option = next((word for word in next(iter(bases)) if len(bases) == 1 and word.startswith(f"{parent}=")), parent)
    return ConfigError(f"{key}: unknown setting; {option} has: {', '.join(siblings)}{near}")


def _differing(having: list[Choice], lacking: list[Choice]) -> tuple[str, str]:
    """`model=mlp has` and `model=lenet has`: the words that make the difference."""
    sides = [list(dict.fromkeys(chain.from_iterable(choices))) for choices in (having, lacking)]
    apart = [[word for word in own if word not in other] for own, other in (sides, sides[::-1])]
    groups = set.intersection(*({word.partition("=")[0] for word in words} for words in apart))
    if groups:
        apart = [[word for word in words if word.partition("=")[0] in groups] for words in apart]
    else:  # no single word makes the difference
        apart = [[" ".join(choice) for choice in choices] for choices in (having, lacking)]
    return _clause(apart[0]), _clause(apart[1])


def _clause(options: list[str]) -> str:
    more = f" and {len(options) - SHOWN} more" if options[SHOWN:] else ""
    return f"{', '.join(options[:SHOWN])}{more} {'has' if len(options) == 1 else 'have'}"


def _dotted(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    """The dotted keys of all nodes but Hydra's own; the entries of a list by their index."""
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        if not prefix and key == "hydra":
            continue
        child = node._get_node(key)
        yield f"{prefix}{key}"
        if isinstance(child, DictConfig | ListConfig) and not child._is_none() and not child._is_missing():
            yield from _dotted(child, f"{prefix}{key}.")
