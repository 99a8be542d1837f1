"""From the `callbacks` mapping of a configuration to the callbacks of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback
from dlrun.registry import ConfigError


def check_callbacks(node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Checks every entry and returns its settings. Raises ConfigError naming `callbacks.<entry>.<setting>`."""
    return {entry: CALLBACKS.check(value, f"callbacks.{entry}") for entry, value in _entries(node).items()}


def build_callbacks(node: Mapping[str, Any]) -> list[Callback]:
    """The callbacks in the order written; an entry that is null (`callbacks.tensorboard=null`) is off."""
    return [CALLBACKS.build(value, f"callbacks.{entry}") for entry, value in _entries(node).items()]


def _entries(node: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    entries = {}
    for entry, value in node.items():
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise ConfigError(f"callbacks.{entry}: got {value!r}; expected a mapping with name and settings, or null")
        entries[entry] = value
    return entries
