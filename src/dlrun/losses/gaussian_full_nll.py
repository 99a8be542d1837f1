"""Gaussian negative log-likelihood with a full covariance."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal
from torch.nn import functional as F

from dlrun.losses import LOSSES
from dlrun.losses._base import Loss, as_float, full_precision
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec

MOST_OUTPUTS = 4096  # for each sample: 89 dimensions


@LOSSES.register("gaussian_full_nll")
class GaussianFullNLL(Loss):
    """Negative log-likelihood of a Gaussian N(μ, Σ) whose mean and covariance Σ = L L^T the network gives:
    (size log 2π) / 2 + Σ_d log L_dd + |L^-1 (y - μ)|² / 2, averaged over the samples.

    The first `size` outputs are μ, the next, v, the diagonal of the lower triangular L, L_dd² = softplus(v_d) + min_variance,
    the others the entries below it, row by row. For one dimension it is `gaussian_nll`. With task=density it is the
    likelihood of the inputs, whose optimum is their mean and their covariance with divisor N.
    Source: Williams, "Using neural networks to model conditional multivariate densities" (1996). Differs: the factor is that of
    the covariance, not of its inverse, and softplus stands for the exponential.

    Args:
        target: what is predicted; kinds real, non_negative.
        min_variance: floor of each L_dd², in squared units of the loss (standardised targets), so that a target hit
            exactly has a finite loss.

    Shapes: outputs (N, size (size + 3) / 2), targets (N, size) -> scalar.

    Raises:
        ConfigError: there are too many dimensions for a covariance per sample.
    """

    name = "gaussian_full_nll"
    kinds = frozenset({"real", "non_negative"})
    largest = (math.isqrt(9 + 8 * MOST_OUTPUTS) - 3) // 2

    def __init__(self, target: TargetSpec, *, min_variance: Annotated[float, Gt(0)] = 1e-6) -> None:
        super().__init__(target)
        self.min_variance = min_variance
        if target.size > self.largest:
            raise ConfigError(
                f"loss.name: gaussian_full_nll needs {self.num_outputs} outputs per sample for {target.size} dimensions, at "
                f"most {MOST_OUTPUTS} are allowed; gaussian_nll has a variance per dimension"
            )
        self._places = _places(target.size)

    def count_outputs(self, target: TargetSpec) -> int:
        return target.size * (target.size + 3) // 2

    def mean_and_factor(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The mean (N, size) and the lower triangle L (N, size, size) of Σ = L L^T."""
        size = self.target.size
        if self._places.device != outputs.device:
            with torch.inference_mode(False):  # autograd keeps the index
                self._places = self._places.to(outputs.device)
        diagonal = (F.softplus(outputs[:, size : 2 * size]) + self.min_variance).sqrt()
        entries = torch.cat([diagonal, outputs[:, 2 * size :], torch.zeros_like(outputs[:, :1])], 1)
        return outputs[:, :size], entries.index_select(1, self._places).unflatten(1, (size, size))

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = full_precision(outputs)
        mean, factor = self.mean_and_factor(outputs)
        residual = (as_float(targets, outputs) - mean).unsqueeze(-1)  # (N, size, 1)
        scaled = torch.linalg.solve_triangular(factor, residual, upper=False).squeeze(-1)
        log_scale = factor.diagonal(dim1=-2, dim2=-1).log().sum(1)
        return 0.5 * (self.target.size * math.log(2 * math.pi) + scaled.square().sum(1)) + log_scale

    def predict(self, outputs: Tensor) -> Tensor:
        return outputs[:, : self.target.size]

    def std(self, outputs: Tensor) -> Tensor:
        return self.mean_and_factor(outputs)[1].square().sum(-1).sqrt()  # the diagonal of L L^T

    def distribution(self, outputs: Tensor) -> Distribution:
        mean, factor = self.mean_and_factor(outputs)
        return MultivariateNormal(mean, scale_tril=factor, validate_args=False)


def _places(size: int) -> Tensor:
    """Where the entries of a lower triangular matrix, row by row, stand among: its diagonal, the entries below it row by row,
    and a zero. int64 (size * size,) on the CPU."""
    below = size * (size - 1) // 2
    places = torch.full((size, size), size + below, device="cpu")
    rows, columns = torch.tril_indices(size, size, offset=-1, device="cpu")
    places[rows, columns] = torch.arange(size, size + below, device="cpu")
    places.diagonal().copy_(torch.arange(size, device="cpu"))
    return places.flatten()
