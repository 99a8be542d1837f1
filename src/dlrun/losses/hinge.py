"""The hinge loss."""

from __future__ import annotations

from torch import Tensor

from dlrun.losses import LOSSES
from dlrun.losses._margin import MarginLoss


@LOSSES.register("hinge")
class Hinge(MarginLoss):
    """The hinge loss max(0, 1 - d s) of the support vector machine, with label d in {-1, +1} and score s.

    For K classes: max(0, 1 + highest other score - score of the true class).

    Source of the K-class form: Crammer and Singer, "On the algorithmic implementation of multiclass kernel-based vector
    machines" (2001).

    Args:
        target: what is predicted; kinds sign and binary (1 output), class (K outputs).

    Shapes: outputs (N, size), targets (N, 1) or int64 (N,) -> scalar.
    """

    name = "hinge"

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (1 - self.margin(outputs, targets)).relu()
