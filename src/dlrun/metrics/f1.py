"""F1."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.metrics._counts import count
from dlrun.spec import TargetSpec


@METRICS.register("f1")
class F1(Metric):
    """F1 = 2 true positives / (predicted + actual positives), averaged over the classes or labels (macro); of the
    positive class for binary and sign. Classes that are neither present nor predicted are left out.

    Args:
        loss: gives the predictions.
        target: what is predicted; kinds class, binary, sign, multi_hot.
    """

    name = "f1"
    kinds = frozenset({"class", "binary", "sign", "multi_hot"})
    higher_is_better = True

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._counts: Tensor | None = None  # (2, size): true positives; predicted + actual positives

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        predictions, size = self.loss.predict(outputs), self.target.size
        if self.target.kind == "class":
            both = count(targets, size, weights=predictions == targets)
            either = count(targets, size) + count(predictions, size)
        else:
            predicted, actual = predictions > 0, targets > 0
            both, either = (predicted & actual).sum(0), predicted.sum(0) + actual.sum(0)
        counts = torch.stack([both, either])
        self._counts = counts if self._counts is None else self._counts + counts

    def compute(self) -> float | None:
        if self._counts is None:
            return None
        both, either = self._counts.double().cpu()
        seen = either > 0
        return float((2 * both[seen] / either[seen]).mean()) if seen.any() else None
