"""Weights of another model into this one, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dlrun.registry import ConfigError, did_you_mean
from dlrun.transfer._names import head_of, is_within, matches

SHOWN = 4  # tensors in an error


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str | None]) -> dict[str, Tensor]:
    """The tensors under other names: `names` maps names of layers or tensors, of which the first that fits counts, to those
    that take their place, or to None for what is left out. Raises ConfigError for a name that is not there, or taken twice."""
    for given in names:
        if not any(is_within(name, given) for name in state):
            known = {".".join(name.split(".")[:n]): None for name in state for n in range(1, name.count(".") + 2)}
            raise ConfigError(f"transfer.map: nothing in the source is called '{given}'{did_you_mean(given, known)}")
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        old = next((old for old in names if is_within(name, old)), None)
        if old is not None:
            if (new := names[old]) is None:
                continue
            name = new + name[len(old) :]
        if name in found:
            raise ConfigError(f"transfer.map: two tensors of the source would be called '{name}'")
        found[name] = tensor
    return found


def wrapped(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names that they have in the model, where it holds their network as a part (torchvision's do)."""
    own = model.state_dict()
    if not any(name in own for name in state):
        for part, _ in model.named_children():
            if any(f"{part}.{name}" in own for name in state):
                return {f"{part}.{name}": tensor for name, tensor in state.items()}
    return dict(state)


def fit(model: nn.Module, state: Mapping[str, Tensor], reset: Sequence[str], where: str, hint: str = "") -> list[str]:
    """Copies the tensors of `state` into the model, all but those that a pattern in `reset` means.

    Returns the tensors of the head that keep their initialisation since their shapes differ, or `state` has none, in words.
    Raises ConfigError, naming tensors, shapes and what would fit (`hint`), if others differ, before anything is copied.
    """
    own, head = model.state_dict(), head_of(model)
    taken: dict[str, Tensor] = {}
    fresh: list[str] = []
    wrong: list[str] = []
    for name, tensor in own.items():
        if any(matches(pattern, name, head) for pattern in reset):
            continue
        if (given := state.get(name)) is not None and given.shape == tensor.shape:
            taken[name] = given
            continue
        there = "is not there" if given is None else f"{shape(given)} there"
        (fresh if is_within(name, head) else wrong).append(f"{name} ({shape(tensor)} here, {there})")
    wrong += [
        f"{name} ({shape(tensor)} there, is not here)"
        for name, tensor in state.items()
        if name not in own and not is_within(name, head)
    ]
    if wrong or not taken:
        more = f" and {len(wrong) - SHOWN} more" if wrong[SHOWN:] else ""
        raise ConfigError(
            f"transfer.source: {where} is of another model than {type(model).__name__}: "
            f"{', '.join(wrong[:SHOWN]) or 'nothing is left of it'}{more}; {hint}"
            "transfer.reset=[...] leaves out layers of this model, transfer.map={there: here} renames those of the other"
        )
    with torch.no_grad():
        for name, given in taken.items():
            own[name].copy_(given)
    return fresh


def shape(tensor: Tensor) -> str:
    """`6x1x5x5`"""
    return "x".join(map(str, tensor.shape)) or "scalar"
