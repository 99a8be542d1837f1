"""Coefficient of determination."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec


@METRICS.register("r2")
class R2(Metric):
    """Coefficient of determination: 1 - squared error / squared deviation of the targets from their mean, averaged over
    the dimensions. Dimensions whose targets are all equal are left out.

    Args:
        loss: gives the predictions.
        target: what is predicted; kinds real, non_negative.
    """

    name = "r2"
    kinds = frozenset({"real", "non_negative"})
    higher_is_better = True

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._origin: Tensor | None = None  # the first target: differences from it keep their digits, equal ones are 0
        self._sums: Tensor | None = None  # (3, size): squared error, deviation from the origin and its square

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        if not len(targets):
            return
        wanted = targets.double()
        if self._origin is None:
            self._origin = wanted[0]
        deviation = wanted - self._origin
        error = self.loss.predict(outputs).double() - wanted
        sums = torch.stack([error.square().sum(0), deviation.sum(0), deviation.square().sum(0)])
        self._samples += len(targets)
        self._sums = sums if self._sums is None else self._sums + sums

    def compute(self) -> float | None:
        if self._sums is None:
            return None
        error, first, second = self._sums.cpu()
        spread = second - first.square() / self._samples
        varied = spread > 0
        return float((1 - error[varied] / spread[varied]).mean()) if varied.any() else None
