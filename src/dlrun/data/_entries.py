"""Nodes that hold several components of one registry, name to settings: `data.transform` and `data.augmentation`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.registry import ConfigError, Registry, did_you_mean

Node = Mapping[str, Mapping[str, Any] | None] | None


def entries(node: Node) -> dict[str, Mapping[str, Any]]:
    """The entries that are on, in the order written; one that is null is off."""
    return {name: settings for name, settings in (node or {}).items() if settings is not None}


def check_entries(registry: Registry, node: Node) -> None:
    """Checks names and settings of a node; needs no data. Raises ConfigError."""
    for name, settings in entries(node).items():
        if "import" not in settings and name not in registry.names():
            allowed = registry.names()
            raise ConfigError(
                f"{registry.group}: unknown '{name}'; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}"
            )
        registry.check({**settings, "name": name}, f"{registry.group}.{name}")
