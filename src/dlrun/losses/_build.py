"""From the `loss` node to a loss: resolves `auto` by the kind of the target and refuses pairs that do not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dlrun.losses import DEFAULT_LOSS, LOSSES
from dlrun.losses._base import Loss, check_pair
from dlrun.registry import RESERVED, ConfigError, did_you_mean
from dlrun.spec import TargetKind, TargetSpec

AUTO = "auto"


def check_loss(node: Mapping[str, Any]) -> None:
    """Checks the node without data. Settings of an `auto` node (label smoothing sets one) must be right for at least
    one loss that `auto` can stand for. Raises ConfigError."""
    if node.get("name") != AUTO:
        LOSSES.check(node)
        return
    candidates = sorted(set(DEFAULT_LOSS.values()))
    for setting in (s for s in node if s not in RESERVED):
        having = [name for name in candidates if setting in LOSSES.settings(name)]
        if not having:
            raise _unknown_to_auto(str(setting), candidates)
        LOSSES.check({"name": having[0], setting: node[setting]})


def build_loss(node: Mapping[str, Any], target: TargetSpec) -> Loss:
    """The loss of the node for `target`. Raises ConfigError if the settings are wrong or the pair does not fit, naming
    the losses that do."""
    if node.get("name") == AUTO:
        node = {**node, "name": _default(target)}
    LOSSES.check(node)  # before the pair: imports the user's module, and a misspelt name is the likelier error
    if target.kind not in _kinds(node["name"]):
        raise check_pair(node["name"], target, fitting(target.kind, target.size))
    loss: Loss = LOSSES.build(node, target=target)
    loss.reduction = LOSSES.build_common(node).reduction
    return loss


def fitting(kind: TargetKind, size: int = 1) -> list[str]:
    """The names of the losses that accept a target of a kind and size."""
    return [name for name in LOSSES.names() if kind in _kinds(name) and size <= _largest(name)]


def _largest(name: str) -> float:
    return getattr(LOSSES.get(name), "largest", math.inf)


def _kinds(name: str) -> frozenset[TargetKind]:
    return getattr(LOSSES.get(name), "kinds", frozenset())


def _default(target: TargetSpec) -> str:
    if target.kind not in DEFAULT_LOSS:
        raise ConfigError(
            "loss.name: the data has no target to fit; name a target column, or train an autoencoder with "
            "task=reconstruction model=autoencoder"
        )
    return DEFAULT_LOSS[target.kind]


def _unknown_to_auto(setting: str, candidates: list[str]) -> ConfigError:
    if others := LOSSES.with_setting(setting):
        return ConfigError(f"loss.{setting}: auto has no such setting; these have: {', '.join(others)}")
    allowed = sorted({s for name in candidates for s in LOSSES.settings(name)})
    return ConfigError(
        f"loss.{setting}: unknown setting; allowed for auto: {', '.join(allowed)}{did_you_mean(setting, allowed)}"
    )
