"""Regression with noise whose size depends on the input, and is known."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource
from dlrun.spec import TargetSpec


def mean(x: Tensor) -> Tensor:
    """The true mean of y at x: sin x."""
    return torch.sin(x)


def sigma(x: Tensor, noise: float = 1.0) -> Tensor:
    """The true standard deviation of y at x: noise (0.1 + 0.4 exp(-x^2 / 2)), largest in the middle."""
    return noise * (0.1 + 0.4 * torch.exp(-x.square() / 2))


@DATASETS.register("heteroscedastic")
class Heteroscedastic(ToySource):
    """y = sin x + sigma(x) e with e standard normal and x uniform on [-3, 3]; `mean` and `sigma` give the truth.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points.
        noise: factor of sigma(x).

    Shapes: inputs float32 (N, 1), targets float32 (N, 1).
    """

    feature_names = ("x",)

    def __init__(self, seed: int, *, samples: SampleCount = 5000, noise: Annotated[float, Gt(0)] = 1.0) -> None:
        self.seed, self.samples, self.noise = seed, samples, noise

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()
        x = 6 * torch.rand(self.samples, 1, generator=generator) - 3
        y = mean(x) + sigma(x, self.noise) * torch.randn(self.samples, 1, generator=generator)
        return x, y, TargetSpec("real", 1, ("y",))
