"""What a transfer is: the weights with which a model begins, which of them are trained, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class Transfer:
    """The base class changes nothing. Called in this order when a run is built:

    transfer.find(node)            before any data are read; not where a run is resumed from a checkpoint
    transfer.load(model, node)     the model is on its device; not where a run is resumed from a checkpoint
    transfer.freeze(model)
    transfer.factors(model)        for the optimizer
    """

    found: Mapping[str, Any] = {}
    """Settings that are saved in place of those given, after `find`: what they stood for."""

    origin: Mapping[str, Any] = {}
    """The configuration of the run whose weights they are, after `find`; empty where there is none."""

    def find(self, node: Mapping[str, Any]) -> None:
        """Raises ConfigError if there is nothing to load for the model of this configuration node."""

    def load(self, model: nn.Module, node: Mapping[str, Any]) -> None:
        """Gives the model its first weights. Raises ConfigError if they are of another model."""

    def freeze(self, model: nn.Module) -> None:
        """Takes parameters out of training."""

    def factors(self, model: nn.Module) -> dict[str, float]:
        """Factors of the learning rate of trainable parameters by name; 1 for those that are not in it."""
        return {}
