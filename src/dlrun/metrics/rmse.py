"""Root mean squared error."""

from __future__ import annotations

from torch import Tensor

from dlrun.metrics import METRICS
from dlrun.metrics._residuals import ResidualMetric


@METRICS.register("rmse")
class RMSE(ResidualMetric):
    """Root of the mean squared error of each dimension, averaged over the dimensions; in original units.

    Args:
        loss: gives the predictions.
        target: what is predicted; kinds real, non_negative.
    """

    name = "rmse"

    def measure(self, residuals: Tensor) -> Tensor:
        return residuals.square()

    def finish(self, mean: Tensor) -> Tensor:
        return mean.sqrt()
