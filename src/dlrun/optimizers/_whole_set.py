"""Optimizers that see the whole training set at each update and change the model by formulas of its own, not by gradients."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from dlrun.registry import ConfigError


class WholeSet(Optimizer):
    """Base. An epoch is one update, whatever the size of a minibatch; the trainer calls `update_model` in place of the backward
    pass and `step` (see `trainer/_whole_set.py`).

    Attributes:
        name: the registry name, for messages.
        method: of the model, that `update_model` needs; beside it, `solves` are the names of the losses it is right for.
        once: whether the first update is the last: nothing is left to improve.
    """

    name: ClassVar[str]
    method: ClassVar[str]
    once: ClassVar[bool] = False

    def __init__(self, params: list[dict[str, Any]], weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": 1.0, "weight_decay": weight_decay})  # the rate is there for those who report it

    def update_model(self, model: nn.Module, inputs: Tensor, targets: Tensor, decay: float) -> None:
        """Changes the parameters in place.

        Args:
            model: one that has `method`.
            inputs: all training inputs (N, *input_shape), as the model takes them.
            targets: all targets: int64 (N,) for classes, 1 being the positive one of two; float (N, size) for others.
            decay: factor of the sum of the squared weights, biases left out, in the mean objective.
        """
        raise NotImplementedError

    def step(self, closure: Any = None) -> Any:
        """There is no step from gradients. Raises ConfigError."""
        raise ConfigError(f"optimizer.name: {self.name} updates from the whole training set only, not from gradients")
