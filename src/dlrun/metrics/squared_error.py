"""Squared error of a reconstruction."""

from __future__ import annotations

from torch import Tensor

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec


@METRICS.register("squared_error")
class SquaredError(Metric):
    """Squared error of an image, summed over its pixels in [0, 1] and averaged over the images.

    Args:
        loss: gives the predictions.
        target: what is predicted; kind unit.
    """

    name = "squared_error"
    kinds = frozenset({"unit"})
    higher_is_better = False

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._total: Tensor | float = 0.0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        per_image = (self.loss.predict(outputs) - targets).square().sum(1)
        self._samples += len(targets)
        self._total = self._total + per_image.double().sum()

    def compute(self) -> float | None:
        return float(self._total) / self._samples if self._samples else None
