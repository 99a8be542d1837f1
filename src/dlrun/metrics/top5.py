"""Top-5 accuracy."""

from __future__ import annotations

from torch import Tensor

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec


@METRICS.register("top5")
class Top5(Metric):
    """Share of the samples whose class is among the five with the highest outputs; reported for more than five classes.

    Args:
        loss: the outputs are its class scores.
        target: what is predicted; kind class.
    """

    name = "top5"
    kinds = frozenset({"class"})
    higher_is_better = True

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._correct: Tensor | int = 0

    @classmethod
    def applies(cls, loss: Loss, target: TargetSpec) -> bool:
        return super().applies(loss, target) and target.size > 5

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        best = outputs.topk(min(5, outputs.shape[1]), dim=1).indices  # (N, 5)
        self._samples += len(targets)
        self._correct = self._correct + (best == targets[:, None]).sum()

    def compute(self) -> float | None:
        return float(self._correct) / self._samples if self._samples else None
