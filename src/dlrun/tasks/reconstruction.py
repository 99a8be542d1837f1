"""Reconstruction of the inputs by an autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlrun.registry import ConfigError
from dlrun.spec import Batch, DataSpec, StepResult, TargetSpec
from dlrun.streams import Stream
from dlrun.tasks import TASKS
from dlrun.tasks._base import Task


@TASKS.register("reconstruction")
class Reconstruction(Task):
    """Predicts the inputs themselves: loss(model(inputs), inputs); the targets of the data are ignored.

    The target of an image is its pixels in [0, 1], flattened, not the normalised values the network sees; the target of
    a vector or a sequence is the standardised one, flattened.

    Args:
        data: what the data is; its inputs are predicted.

    Raises:
        ConfigError: from `check_model`, if the model has no `encode` and `decode`, or gives another number of values
            than the inputs have.
    """

    def __init__(self, data: DataSpec) -> None:
        super().__init__(data)
        self._mean = torch.tensor(data.mean or (0.0,)).view(-1, 1, 1)
        self._std = torch.tensor(data.std or (1.0,)).view(-1, 1, 1)

    def target(self) -> TargetSpec:
        if self.data.is_image:
            return TargetSpec("unit", math.prod(self.data.input_shape))
        data = self.data  # inputs are standardised as real targets are: results are reported in original units
        steps = math.prod(data.input_shape[1:])  # of a sequence (C, L), whose statistics are per channel; 1 for vectors
        mean, std = (tuple(value for value in values for _ in range(steps)) for values in (data.mean, data.std))
        return TargetSpec("real", math.prod(data.input_shape), data.feature_names, mean, std)

    def check_model(self, model: object) -> None:
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise ConfigError(
                f"model: task=reconstruction needs a model with encode and decode, {type(model).__name__} has none; "
                f"these fit: {', '.join(_autoencoders())}"
            )
        if isinstance(model, nn.Module):
            self.check_outputs(model, flatten=True)

    def targets_of(self, inputs: Tensor) -> Tensor:
        """(N, size): what is to be predicted from normalised inputs (N, *input_shape)."""
        if not self.data.is_image:
            return inputs.flatten(1)
        if self._mean.device != inputs.device:  # once, at the first step
            self._mean, self._std = self._mean.to(inputs.device), self._std.to(inputs.device)
        return (inputs * self._std + self._mean).clamp(0, 1).flatten(1)

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Batch, stream: Stream) -> StepResult:
        targets = self.targets_of(batch.inputs)
        outputs = model(batch.inputs).flatten(1)
        return StepResult(self.loss(outputs, targets), outputs, targets, {})


def _autoencoders() -> list[str]:
    from dlrun.models import MODELS

    return [name for name in MODELS.names() if hasattr(MODELS.get(name), "decode")]
