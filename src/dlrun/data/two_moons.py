"""Two interleaved half circles."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource, two_class
from dlrun.spec import TargetSpec


@DATASETS.register("two_moons")
class TwoMoons(ToySource):
    """Two interleaved half circles (scikit-learn's `make_moons`).

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points.
        noise: standard deviation of Gaussian noise on the points.

    Shapes: inputs float32 (N, 2), targets float32 (N, 1) in {0, 1}.
    """

    def __init__(self, seed: int, *, samples: SampleCount = 2000, noise: Annotated[float, Ge(0)] = 0.1) -> None:
        self.seed, self.samples, self.noise = seed, samples, noise

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        from sklearn.datasets import make_moons

        points, labels = make_moons(self.samples, noise=self.noise, random_state=self.sklearn_seed())
        return torch.from_numpy(points), *two_class(torch.from_numpy(labels) == 1, "binary")
