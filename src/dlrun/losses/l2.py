"""The squared norm."""

from __future__ import annotations

import math

from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from dlrun.losses import LOSSES
from dlrun.losses._base import Loss, as_float, full_precision


@LOSSES.register("l2")
class L2(Loss):
    """Squared norm ||ŷ - y||², summed over the dimensions and averaged over the samples; gradient 2 (ŷ - y) per sample.

    It is the negative log-likelihood of a Gaussian with variance 1/2 in every dimension, in the units of the loss
    (standardised targets), less the constant (size / 2) log π. With unit variance it would be ||ŷ - y||² / 2.

    Args:
        target: what is predicted; kinds real, non_negative, unit.

    Shapes: outputs (N, size), targets (N, size) -> scalar.
    """

    name = "l2"
    kinds = frozenset({"real", "non_negative", "unit"})

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = full_precision(outputs)
        return (outputs - as_float(targets, outputs)).square().sum(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs

    def distribution(self, outputs: Tensor) -> Distribution:
        return Independent(Normal(outputs, math.sqrt(0.5), validate_args=False), 1, validate_args=False)
