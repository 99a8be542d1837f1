"""Which tensors and layers of a model a pattern means.

A pattern is the name of a layer or tensor in which `*`, `?` and `[...]` stand for anything, such as `c1`, `net.layer*` or
`*.bias`; it means all that lies below, too. `head` is the layer of that name or, failing that, the last one with weights,
and `body` is everything else.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence

from torch import nn

from dlrun.registry import ConfigError, did_you_mean

SHOWN = 12  # names of layers in an error


def layers_of(model: nn.Module) -> list[str]:
    """The names of the modules that own parameters, in the order of registration."""
    return [name for name, module in model.named_modules() if any(True for _ in module.parameters(recurse=False))]


def head_of(model: nn.Module) -> str:
    """The name of the layer that gives the outputs; "" if the model itself owns the parameters, or there are none."""
    own = layers_of(model)
    if any(is_within(name, "head") for name in own):
        return "head"
    return own[-1] if own else ""


def is_within(name: str, layer: str) -> bool:
    """Whether the tensor or layer `name` is `layer` or lies below it; all do below ""."""
    return not layer or name == layer or name.startswith(f"{layer}.")


def matches(pattern: str, name: str, head: str) -> bool:
    """Whether a pattern means the tensor or layer `name` of a model with this head."""
    if pattern == "head":
        return is_within(name, head)
    if pattern == "body" and not is_within(name, head):
        return True
    parts = name.split(".")
    return any(fnmatch.fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def check_patterns(setting: str, patterns: Iterable[str], names: Sequence[str], model: nn.Module, what: str) -> None:
    """Raises ConfigError, blaming the setting, for the first pattern that means none of `names`, the `what` of the model."""
    head = head_of(model)
    for pattern in patterns:
        if not any(matches(pattern, name, head) for name in names):
            layers = [name for name, _ in model.named_modules() if name]
            shown = layers_of(model)
            more = ", ..." if shown[SHOWN:] else ""
            raise ConfigError(
                f"transfer.{setting}: '{pattern}' means no {what} of {type(model).__name__}; its layers: "
                f"{', '.join(shown[:SHOWN])}{more}{did_you_mean(pattern, layers)}"
            )
