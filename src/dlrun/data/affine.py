"""Regression of several targets that are an affine function of the inputs."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dlrun import streams
from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource, check_values
from dlrun.spec import TargetSpec


@DATASETS.register("affine")
class Affine(ToySource):
    """y = A x + b, plus Gaussian noise if asked for, with x, A and b standard normal; `weights` gives A and b.

    Without noise a linear model fits it exactly, and least squares gives A and b back.

    Args:
        seed: seed of the points and of A and b; given by dlrun.
        samples: number of points.
        features: dimension D of x.
        outputs: dimension N of y.
        noise: standard deviation of the noise on every y.

    Shapes: inputs float32 (samples, D), targets float32 (samples, N).
    """

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 1000,
        features: Annotated[int, Gt(0), Le(10_000)] = 3,
        outputs: Annotated[int, Gt(0), Le(10_000)] = 2,
        noise: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        check_values(samples * (features + outputs), "data.samples, data.features and data.outputs")
        self.seed, self.samples, self.features, self.outputs, self.noise = seed, samples, features, outputs, noise
        self.feature_names = tuple(f"x{i + 1}" for i in range(features))

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()
        x = torch.randn(self.samples, self.features, generator=generator)
        noise = self.noise * torch.randn(self.samples, self.outputs, generator=generator)
        a, b = self.weights()
        y = (x.double() @ a.T + b + noise).float()
        return x, y, TargetSpec("real", self.outputs, tuple(f"y{i + 1}" for i in range(self.outputs)))

    def weights(self) -> tuple[Tensor, Tensor]:
        """A (N, D) and b (N,), float64."""
        generator = streams.generator(self.seed, "data/Affine/weights")
        table = torch.randn(self.outputs, self.features + 1, generator=generator, dtype=torch.float64)
        return table[:, :-1], table[:, -1]
