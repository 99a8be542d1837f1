"""Two Gaussian classes that share their covariance, with everything that is known of them in closed form."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import Labels, SampleCount, ToySource, two_class
from dlrun.spec import TargetSpec


@DATASETS.register("gaussians")
class Gaussians(ToySource):
    """Two Gaussian classes in the plane with shared covariance [[1, r], [r, 1]] and means (-d/2, 0) and (d/2, 0).

    The posterior of the second class is sigmoid(w.x + b) exactly, so a logistic model can reach the Bayes accuracy.
    `weights`, `posterior` and `bayes_accuracy` give them.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points.
        distance: distance d of the two means.
        correlation: correlation r of the two features within a class; not 0, so that w is not along the line of means.
        prior: probability of the second class.
        labels: binary (0, 1) or sign (-1, +1).

    Shapes: inputs float32 (N, 2), targets float32 (N, 1).
    """

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 10000,
        distance: Annotated[float, Gt(0)] = 2.0,
        correlation: Annotated[float, Gt(-1), Lt(1)] = 0.5,
        prior: Annotated[float, Gt(0), Lt(1)] = 0.5,
        labels: Labels = "binary",
    ) -> None:
        self.seed, self.samples, self.labels = seed, samples, labels
        self.distance, self.correlation, self.prior = distance, correlation, prior

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()
        second = torch.rand(self.samples, generator=generator, dtype=torch.float64) < self.prior
        white = torch.randn(self.samples, 2, generator=generator, dtype=torch.float64)
        points = white @ torch.linalg.cholesky(self.covariance()).T  # x = L z has covariance L L^T
        points[:, 0] += (second.double() - 0.5) * self.distance
        return points, *two_class(second, self.labels)

    def covariance(self) -> Tensor:
        """The shared covariance, (2, 2) float64."""
        return torch.tensor([[1.0, self.correlation], [self.correlation, 1.0]], dtype=torch.float64)

    def weights(self) -> tuple[Tensor, float]:
        """w = inverse covariance times (mean 1 - mean 0), and b = log prior ratio, as the means lie evenly around 0."""
        difference = torch.tensor([self.distance, 0.0], dtype=torch.float64)
        return torch.linalg.solve(self.covariance(), difference), math.log(self.prior / (1 - self.prior))

    def posterior(self, inputs: Tensor) -> Tensor:
        """P(second class | x): (N, 2) -> (N,) float64."""
        w, b = self.weights()
        return torch.sigmoid(inputs.double() @ w + b)

    def bayes_accuracy(self) -> float:
        """The best accuracy that any classifier can expect: the two classes' shares on their sides of w.x + b = 0."""
        w, b = self.weights()
        d = math.sqrt(self.distance * float(w[0]))  # Mahalanobis distance of the means
        return self.prior * _normal_cdf(d / 2 + b / d) + (1 - self.prior) * _normal_cdf(d / 2 - b / d)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))
