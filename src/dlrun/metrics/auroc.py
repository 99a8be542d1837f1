"""Area under the ROC curve."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec

_MAX_CLASSES = 100  # every class sorts all samples: too slow and too large for ImageNet


@METRICS.register("auroc")
class AUROC(Metric):
    """Area under the ROC curve: the chance that a positive sample scores higher than a negative one, ties being half.

    Each class against the rest, or each label on its own, averaged over those with both positive and negative samples
    (macro); reported for up to 100 classes. Scores are probabilities, or the raw outputs of losses that give none.

    Args:
        loss: gives the probabilities.
        target: what is predicted; kinds class, binary, sign, multi_hot.
    """

    name = "auroc"
    kinds = frozenset({"class", "binary", "sign", "multi_hot"})
    higher_is_better = True

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._scores: list[Tensor] = []
        self._targets: list[Tensor] = []

    @classmethod
    def applies(cls, loss: Loss, target: TargetSpec) -> bool:
        return super().applies(loss, target) and target.size <= _MAX_CLASSES

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        probabilities = self.loss.probabilities(outputs)
        self._scores.append(outputs if probabilities is None else probabilities)
        self._targets.append(targets)

    def compute(self) -> float | None:
        if not self._scores:
            return None
        scores, targets = torch.cat(self._scores), torch.cat(self._targets)
        positive = F.one_hot(targets, self.target.size) > 0 if self.target.kind == "class" else targets > 0
        columns = zip(scores.T.cpu().numpy(), positive.T.cpu().numpy(), strict=True)
        areas = [area for column, labels in columns if (area := roc_area(column, labels)) is not None]
        return sum(areas) / len(areas) if areas else None


def roc_area(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve of scores (N,) with labels bool (N,); None without both positives and negatives.

    In NumPy, whose sort is ten times as fast as PyTorch's on a CPU.
    """
    order = scores.argsort()
    ordered = scores[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)  # last place of each tied group
    positives = positive[order].cumsum()[ends]  # up to and including the group
    negatives = ends + 1 - positives
    if positives[-1] == 0 or negatives[-1] == 0:
        return None
    in_group = np.diff(positives, prepend=0)
    beaten = negatives - np.diff(negatives, prepend=0) / 2
    return float((in_group * beaten).sum() / (positives[-1] * negatives[-1]))
