"""From the mapping of chosen entries to regularizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.registry import ConfigError
from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer


def check_regularizers(node: Mapping[str, Any]) -> None:
    """Checks every entry without building it. Raises ConfigError naming `regularization.<entry>`."""
    for entry, settings in _entries(node):
        REGULARIZATION.check(settings, f"regularization.{entry}")


def build_regularizers(node: Mapping[str, Any]) -> dict[str, Regularizer]:
    """The regularizers by entry, in the order chosen. Raises ConfigError naming `regularization.<entry>`."""
    return {entry: REGULARIZATION.build(settings, f"regularization.{entry}") for entry, settings in _entries(node)}


def _entries(node: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    for entry, settings in node.items():
        if not isinstance(settings, Mapping):
            raise ConfigError(
                f"regularization.{entry}: got {settings!r}; expected a mapping with a name and its settings "
                f"(to leave an entry out: ~regularization.{entry})"
            )
    return list(node.items())
