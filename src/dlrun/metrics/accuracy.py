"""Accuracy."""

from __future__ import annotations

from torch import Tensor

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec


@METRICS.register("accuracy")
class Accuracy(Metric):
    """Share of the samples predicted correctly; with several labels, of those with every label correct.

    Args:
        loss: gives the predictions.
        target: what is predicted; kinds class, binary, sign, multi_hot.
    """

    name = "accuracy"
    kinds = frozenset({"class", "binary", "sign", "multi_hot"})
    higher_is_better = True

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._correct: Tensor | int = 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        right = (self.loss.predict(outputs) == targets).reshape(len(targets), -1).all(1)
        self._samples += len(targets)
        self._correct = self._correct + right.sum()

    def compute(self) -> float | None:
        return float(self._correct) / self._samples if self._samples else None
