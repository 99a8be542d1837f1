"""Curve fitting: a noisy polynomial of one variable."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec


@DATASETS.register("poly1d")
class Poly1d(ToySource):
    """y = c0 + c1 x + c2 x^2 + ... plus Gaussian noise, x uniform on an interval.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points.
        coefficients: c0, c1, c2, ...; two of them make a line, one a constant.
        noise: standard deviation of the noise on y.
        low: left end of the interval of x.
        high: right end of the interval of x.

    Shapes: inputs float32 (N, 1), targets float32 (N, 1).

    Raises:
        ConfigError: low is not below high.
    """

    feature_names = ("x",)

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 1000,
        coefficients: Annotated[tuple[float, ...], MinLen(1)] = (1.0, -2.0, 3.0),
        noise: Annotated[float, Ge(0)] = 0.1,
        low: float = -1.0,
        high: float = 1.0,
    ) -> None:
        if low >= high:
            raise ConfigError(f"data.low: got {low}; must be below data.high, which is {high}")
        self.seed, self.samples, self.coefficients, self.noise = seed, samples, coefficients, noise
        self.low, self.high = low, high

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()
        x = self.low + (self.high - self.low) * torch.rand(self.samples, 1, generator=generator)
        noise = self.noise * torch.randn(self.samples, 1, generator=generator)
        return x, self.mean(x) + noise, TargetSpec("real", 1, ("y",))

    def mean(self, x: Tensor) -> Tensor:
        """The polynomial itself, by Horner's rule in float64 and rounded once."""
        wide = x.double()
        y = torch.zeros_like(wide)
        for coefficient in reversed(self.coefficients):
            y = y * wide + coefficient
        return y.to(x.dtype)
