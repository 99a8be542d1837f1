"""Exponential negative log-likelihood."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.distributions import Distribution, Exponential, Independent
from torch.nn import functional as F

from dlrun.losses import LOSSES
from dlrun.losses._base import Loss, as_float, full_precision
from dlrun.spec import TargetSpec

_MIN_RATE = 1e-6  # softplus underflows to 0 for outputs below -104, and log 0 is infinite


@LOSSES.register("exponential_nll")
class ExponentialNLL(Loss):
    """Negative log-likelihood of an exponential variable: λ y - log λ, summed over the dimensions and averaged over the
    samples. For waiting times and other targets that are never negative. Mean and standard deviation are both 1 / λ.

    Args:
        target: what is predicted; kind non_negative.
        rate: how a raw output a gives the rate: "exp" (λ = exp(a); the loss is convex in a) or "softplus"
            (λ = log(1 + exp(a)), grows only linearly).

    Shapes: outputs (N, size), targets (N, size) -> scalar.
    """

    name = "exponential_nll"
    kinds = frozenset({"non_negative"})

    def __init__(self, target: TargetSpec, *, rate: Literal["exp", "softplus"] = "exp") -> None:
        super().__init__(target)
        self.rate = rate

    def rate_of(self, outputs: Tensor) -> Tensor:
        """λ > 0 of each dimension, (N, size)."""
        return outputs.exp() if self.rate == "exp" else F.softplus(outputs) + _MIN_RATE

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = full_precision(outputs)
        rate = self.rate_of(outputs)
        log_rate = outputs if self.rate == "exp" else rate.log()
        return (rate * as_float(targets, outputs) - log_rate).sum(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return 1 / self.rate_of(outputs)

    def std(self, outputs: Tensor) -> Tensor:
        return 1 / self.rate_of(outputs)

    def distribution(self, outputs: Tensor) -> Distribution:
        return Independent(Exponential(self.rate_of(outputs), validate_args=False), 1, validate_args=False)
