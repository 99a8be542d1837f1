"""Negative log-likelihood of regression targets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlrun.losses._base import Loss
from dlrun.metrics import METRICS
from dlrun.metrics._base import Metric
from dlrun.spec import TargetSpec


@METRICS.register("nll")
class NLL(Metric):
    """Mean negative log-likelihood of a target, all constants included, as a density over original units: that of
    standardised targets plus Σ log(std). For losses that are likelihoods (`l2`: a Gaussian of fixed variance).

    Args:
        loss: gives the distribution.
        target: what is predicted; kinds real, non_negative.
    """

    name = "nll"
    kinds = frozenset({"real", "non_negative"})
    higher_is_better = False

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        super().__init__(loss, target)
        self._samples = 0
        self._total: Tensor | float = 0.0

    @classmethod
    def applies(cls, loss: Loss, target: TargetSpec) -> bool:
        return super().applies(loss, target) and loss.distribution(torch.zeros(1, loss.num_outputs)) is not None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        distribution = self.loss.distribution(outputs)
        assert distribution is not None, "see applies"
        self._samples += len(targets)
        self._total = self._total - distribution.log_prob(targets).double().sum()

    def compute(self) -> float | None:
        if not self._samples:
            return None
        return float(self._total) / self._samples + sum(math.log(std) for std in self.target.std)
