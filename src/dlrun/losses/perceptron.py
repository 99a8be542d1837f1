"""The perceptron criterion."""

from __future__ import annotations

from torch import Tensor

from dlrun.losses import LOSSES
from dlrun.losses._margin import MarginLoss


@LOSSES.register("perceptron")
class PerceptronCriterion(MarginLoss):
    """The perceptron criterion max(0, -d s) with label d in {-1, +1} and score s: only misclassified samples count.

    One step of SGD on a single sample is the perceptron rule w <- w + γ d x of a misclassified sample. For K classes:
    the highest score less that of the true class. Scores of zero have zero gradient: begin with random weights.

    Args:
        target: what is predicted; kinds sign and binary (1 output), class (K outputs).

    Shapes: outputs (N, size), targets (N, 1) or int64 (N,) -> scalar.
    """

    name = "perceptron"

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (-self.margin(outputs, targets)).relu()
