"""Expected calibration error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec

_BINS = 15


@METRICS.register("ece")
class ECE(Metric):
    """Expected calibration error: samples are binned by the probability of the predicted class into 15 bins of equal
    width; the mean over the samples of |accuracy - mean probability| of their bin. Needs a loss with probabilities.

    Source: Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2.

    Args:
        loss: gives the predictions and probabilities.
        target: what is predicted; kinds class, binary, sign.
    """

    name = "ece"
    kinds = frozenset({"class", "binary", "sign"})
    higher_is_better = False

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._gaps: Tensor | None = None  # (bins,): number of correct samples less the sum of their probabilities

    @classmethod
    def applies(cls, loss: Loss, target: TargetSpec) -> bool:
        return super().applies(loss, target) and loss.probabilities(torch.zeros(1, loss.num_outputs)) is not None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        probabilities = self.loss.probabilities(outputs)
        assert probabilities is not None, "see applies"
        if self.target.kind != "class":
            probabilities = torch.cat([1 - probabilities, probabilities], 1)
        confidence = probabilities.amax(1)
        right = (self.loss.predict(outputs) == targets).reshape(-1)
        bins = ((confidence * _BINS).ceil().long() - 1).clamp(0, _BINS - 1)  # bin i is (i / 15, (i + 1) / 15]
        gaps = (right.double() - confidence.double()) @ F.one_hot(bins, _BINS).double()
        self._samples += len(targets)
        self._gaps = gaps if self._gaps is None else self._gaps + gaps

    def compute(self) -> float | None:
        return None if self._gaps is None else float(self._gaps.abs().sum()) / self._samples
