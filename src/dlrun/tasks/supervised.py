"""Supervised learning."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from dlrun.registry import ConfigError
from dlrun.spec import Batch, StepResult
from dlrun.streams import Stream
from dlrun.tasks import TASKS
from dlrun.tasks._base import Task


@TASKS.register("supervised")
class Supervised(Task):
    """Predicts the targets of the data from its inputs: loss(model(inputs), targets).

    Args:
        data: what the data is; its target is predicted.

    Raises:
        ConfigError: from `check_model`, if a classifier ends in a softmax (losses take raw outputs), or if the outputs have a
            shape that the loss cannot take.
    """

    def check_model(self, model: object) -> None:
        if not isinstance(model, nn.Module):
            return
        last = list(model.modules())[-1]
        if self.data.target.kind == "class" and isinstance(last, (nn.Softmax, nn.LogSoftmax)):
            raise ConfigError(
                f"model: ends in {type(last).__name__}, but losses take raw outputs (the softmax is theirs); remove it"
            )
        self.check_outputs(model)

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch, stream: Stream) -> StepResult:
        outputs = model(batch.inputs)
        return StepResult(self.loss(outputs, batch.targets), outputs, batch.targets, {})
