"""Two concentric circles."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource, two_class
from dlrun.spec import TargetSpec


@DATASETS.register("circles")
class Circles(ToySource):
    """Two concentric circles (scikit-learn's `make_circles`): not separable by a line, but by a radius.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points.
        noise: standard deviation of Gaussian noise on the points.
        factor: radius of the inner circle, class 1; the outer one, class 0, has radius 1.

    Shapes: inputs float32 (N, 2), targets float32 (N, 1) in {0, 1}.
    """

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 2000,
        noise: Annotated[float, Ge(0)] = 0.05,
        factor: Annotated[float, Gt(0), Lt(1)] = 0.5,
    ) -> None:
        self.seed, self.samples, self.noise, self.factor = seed, samples, noise, factor

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        from sklearn.datasets import make_circles

        points, labels = make_circles(
            self.samples, noise=self.noise, factor=self.factor, random_state=self.sklearn_seed()
        )
        return torch.from_numpy(points), *two_class(torch.from_numpy(labels) == 1, "binary")
