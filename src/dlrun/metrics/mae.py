"""Mean absolute error."""

from __future__ import annotations

from torch import Tensor

from dlrun.metrics import METRICS
from dlrun.metrics._residuals import ResidualMetric


@METRICS.register("mae")
class MAE(ResidualMetric):
    """Mean absolute error, averaged over the dimensions; in original units.

    Args:
        loss: gives the predictions.
        target: what is predicted; kinds real, non_negative.
    """

    name = "mae"

    def measure(self, residuals: Tensor) -> Tensor:
        return residuals.abs()
