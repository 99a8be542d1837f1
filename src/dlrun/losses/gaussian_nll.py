"""Gaussian negative log-likelihood with predicted variance."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.nn import functional as F

from dlrun.losses import LOSSES
from dlrun.losses._base import Loss, as_float, full_precision
from dlrun.spec import TargetSpec


@LOSSES.register("gaussian_nll")
class GaussianNLL(Loss):
    """Negative log-likelihood of a Gaussian whose mean and variance the network gives:
    Σ_d (log(2π σ_d²) + (y_d - μ_d)² / σ_d²) / 2, averaged over the samples.

    The first `size` outputs are μ; the others, v, give σ² = softplus(v) + min_variance.
    Source: Nix and Weigend, "Estimating the mean and variance of the target probability distribution" (1994). Differs:
    softplus in place of the exponential, whose gradients grow with the variance. `beta`: Seitzer et al., "On the Pitfalls of
    Heteroscedastic Uncertainty Estimation with Probabilistic Neural Networks" (2022), section 4.

    Args:
        target: what is predicted; kinds real, non_negative.
        variance: "per_dimension" (2 size outputs) or "isotropic" (one variance for all dimensions: size + 1 outputs).
        min_variance: floor of the variance, in squared units of the loss (standardised targets), so that a target hit
            exactly has a finite loss.
        beta: each term is multiplied by σ_d^(2 beta), taken as a constant, so that samples which the network explains badly
            still shape the mean: 0 is the likelihood, 1 gives the mean the gradients of a squared error. Of the loss alone:
            the metric `nll` stays that of the Gaussian.

    Shapes: outputs (N, 2 size) or (N, size + 1), targets (N, size) -> scalar.
    """

    name = "gaussian_nll"
    kinds = frozenset({"real", "non_negative"})

    def __init__(
        self,
        target: TargetSpec,
        *,
        variance: Literal["per_dimension", "isotropic"] = "per_dimension",
        min_variance: Annotated[float, Gt(0)] = 1e-6,
        beta: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        self.variance = variance
        self.min_variance = min_variance
        self.beta = beta
        super().__init__(target)

    def count_outputs(self, target: TargetSpec) -> int:
        return 2 * target.size if self.variance == "per_dimension" else target.size + 1

    def mean_and_variance(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (N, size) and the variance (N, size) of each dimension."""
        mean = outputs[:, : self.target.size]
        variance = F.softplus(outputs[:, self.target.size :]) + self.min_variance  # (N, size) or (N, 1)
        return mean, variance.expand_as(mean)

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = full_precision(outputs)
        mean, variance = self.mean_and_variance(outputs)
        residual = as_float(targets, outputs) - mean
        terms = 0.5 * (math.log(2 * math.pi) + variance.log() + residual.square() / variance)
        return (terms * variance.detach() ** self.beta if self.beta else terms).sum(1)

    def predict(self, outputs: Tensor) -> Tensor:
        return self.mean_and_variance(outputs)[0]

    def std(self, outputs: Tensor) -> Tensor:
        return self.mean_and_variance(outputs)[1].sqrt()

    def distribution(self, outputs: Tensor) -> Distribution:
        mean, variance = self.mean_and_variance(outputs)
        return Independent(Normal(mean, variance.sqrt(), validate_args=False), 1, validate_args=False)
