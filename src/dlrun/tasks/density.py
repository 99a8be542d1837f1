"""Density estimation."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn

from dlrun.registry import ConfigError
from dlrun.spec import Batch, StepResult, TargetSpec
from dlrun.streams import Stream
from dlrun.tasks import TASKS
from dlrun.tasks._base import Task


@TASKS.register("density")
class Density(Task):
    """Fits a distribution to the inputs themselves: loss(model(inputs), inputs), with a model whose outputs, the parameters of
    the distribution, do not depend on the inputs; the targets of the data are ignored.

    The minimum of the mean negative log-likelihood is the maximum-likelihood estimate. Inputs are taken as the network sees
    them (standardised, unless data.normalize=unit), images flattened; `nll` is that of a density over original units.

    Args:
        data: what the data is; its inputs are fitted.

    Raises:
        ConfigError: from `check_model`, if the model's outputs depend on the inputs, or are not as many as the loss needs.
    """

    def target(self) -> TargetSpec:
        data = self.data
        repeat = math.prod(data.input_shape[1:])  # of an image, each channel's statistics for all its pixels
        mean, std = (tuple(value for value in values for _ in range(repeat)) for values in (data.mean, data.std))
        return TargetSpec("real", math.prod(data.input_shape), data.feature_names, mean, std)

    def check_model(self, model: object) -> None:
        if not getattr(model, "ignores_inputs", False):
            raise ConfigError(
                f"model: task=density needs a model whose outputs are the same for all inputs, {type(model).__name__} is none; "
                f"these fit: {', '.join(_constant_models())}"
            )
        if isinstance(model, nn.Module):
            self.check_outputs(model)

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch, stream: Stream) -> StepResult:
        outputs, targets = model(batch.inputs), batch.inputs.flatten(1)
        return StepResult(self.loss(outputs, targets), outputs, targets, {})


def _constant_models() -> list[str]:
    from dlrun.models import MODELS

    return [name for name in MODELS.names() if getattr(MODELS.get(name), "ignores_inputs", False)]
