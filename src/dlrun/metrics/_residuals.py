"""What RMSE and MAE share: a mean over the samples of a function of the residuals, dimension by dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.losses._base import Loss, original_units
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec


class ResidualMetric(Metric):
    """Accumulates `measure` of the residuals in the units of the loss; reported in original units."""

    kinds = frozenset({"real", "non_negative"})
    higher_is_better = False

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._total: Tensor | None = None  # (size,)

    def measure(self, residuals: Tensor) -> Tensor:
        """float64 (N, size) -> (N, size)."""
        raise NotImplementedError

    def finish(self, mean: Tensor) -> Tensor:
        """The mean of `measure` over the samples, (size,), as a length in the units of the loss."""
        return mean

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        total = self.measure(self.loss.predict(outputs).double() - targets.double()).sum(0)
        self._samples += len(targets)
        self._total = total if self._total is None else self._total + total

    def compute(self) -> float | None:
        if self._total is None:
            return None
        lengths = self.finish(self._total / self._samples)
        return float(torch.mean(original_units(lengths, self.target, scale_only=True)))
