"""Noisy waves of one variable (time), to be classified by their shape."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._files import read_matrix
from dlrun.data._toy import SampleCount, ToySource, check_values
from dlrun.spec import TargetSpec

SHAPES = ("sine", "square", "triangle", "sawtooth")
PERIODS = 12.0, 24.0  # steps; independent of the length, so that what is learnt on one length serves another


@DATASETS.register("signals")
class Signals(ToySource):
    """Waves of four shapes (sine, square, triangle, sawtooth) with random period, phase and amplitude, plus noise.

    Periods are uniform between 12 and 24 steps, amplitudes between 0.5 and 1.5. Each channel shows the same wave with a phase
    and noise of its own.

    Args:
        seed: seed of the signals; given by dlrun.
        samples: number of signals.
        length: steps L of a signal.
        channels: channels C of a signal.
        noise: standard deviation of the Gaussian noise on every value.

    Shapes: inputs float32 (N, C, L), targets int64 (N,), the shape.
    """

    feature_names = ()

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 2000,
        length: Annotated[int, Ge(8), Le(100_000)] = 64,
        channels: Annotated[int, Ge(1), Le(1000)] = 1,
        noise: Annotated[float, Ge(0)] = 0.2,
    ) -> None:
        check_values(samples * channels * length, "data.samples, data.channels and data.length")
        self.seed, self.samples, self.length, self.channels, self.noise = seed, samples, length, channels, noise

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        n = self.samples
        shape = torch.arange(n) % len(SHAPES)
        cycles = torch.arange(self.length) / uniform(*PERIODS, n, 1, 1) + uniform(0.0, 1.0, n, self.channels, 1)
        waves = uniform(0.5, 1.5, n, 1, 1) * wave(shape.view(n, 1, 1), cycles)
        waves += self.noise * torch.randn(waves.shape, generator=generator)
        return waves, shape, TargetSpec("class", len(SHAPES), SHAPES)

    def read_inputs(self, path: Path) -> Tensor:
        """(N, C, L) from a text table of C * L numbers per line, channel by channel."""
        return read_matrix(path, self.channels * self.length).view(-1, self.channels, self.length)


def wave(shape: Tensor, cycles: Tensor) -> Tensor:
    """Values in [-1, 1] of the waves of number `shape` (see SHAPES) after `cycles` periods. At 0 the sine and the triangle go
    upwards through 0, the square is at 1 for half a period, the sawtooth begins to rise from -1."""
    part = cycles.frac()
    square = torch.where(part < 0.5, 1.0, -1.0)
    triangle = 1 - 4 * ((part + 0.25) % 1 - 0.5).abs()
    waves = torch.sin(2 * torch.pi * part), square, triangle, 2 * part - 1
    found = waves[0]
    for number, values in enumerate(waves):
        found = torch.where(shape == number, values, found)
    return found
