"""What a task is: how a model, a batch and a loss make one step. Tasks hold no hidden state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dlrun.registry import ConfigError
from dlrun.spec import Batch, DataSpec, StepResult, TargetSpec
from dlrun.streams import Stream

if TYPE_CHECKING:
    from dlrun.losses._base import Loss


class Task:
    """Base of all tasks. `model` in `__call__` is any callable, so that one task serves a model, a stack of models or a
    distributed wrapper.

    Life: `Task(data)` -> `target()` says what the loss must fit -> the loss is built -> `task.loss` is set by the builder ->
    the model is built -> `check_model(model)`.
    """

    def __init__(self, data: DataSpec) -> None:
        self.data = data
        self.loss: Loss

    def target(self) -> TargetSpec:
        """What the loss and the metrics are computed on; the data's own target unless the task makes one."""
        return self.data.target

    def check_model(self, model: object) -> None:
        """Raises ConfigError if the model lacks what the task needs (`encode` and `decode`, say)."""

    def check_outputs(self, model: nn.Module, flatten: bool = False) -> None:
        """Raises ConfigError if the outputs for one input of zeros (flattened or not) do not have the shape the loss needs."""
        training = model.training
        with torch.no_grad():
            outputs = model.eval()(torch.zeros(1, *self.data.input_shape))
        model.train(training)
        got, wanted = tuple((outputs.flatten(1) if flatten else outputs).shape), (1, self.loss.num_outputs)
        if got != wanted:
            raise ConfigError(f"model: {type(model).__name__} gives outputs of shape {got}; the loss needs {wanted}")

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch, stream: Stream) -> StepResult:
        """One step without update: forward and loss. `stream`: of this step, for tasks that sample."""
        raise NotImplementedError
