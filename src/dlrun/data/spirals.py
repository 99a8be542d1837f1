"""Interleaved spirals."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource, check_classes
from dlrun.spec import TargetSpec


@DATASETS.register("spirals")
class Spirals(ToySource):
    """Interleaved Archimedean spirals, one per class: radius t and angle 2 pi (turns t + class / classes), t uniform.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points, spread evenly over the classes.
        classes: number of arms.
        turns: how often an arm goes round.
        noise: standard deviation of Gaussian noise on the points (the outer radius is 1).

    Shapes: inputs float32 (N, 2), targets int64 (N,).
    """

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 3000,
        classes: Annotated[int, Ge(2)] = 3,
        turns: Annotated[float, Gt(0)] = 1.0,
        noise: Annotated[float, Ge(0)] = 0.02,
    ) -> None:
        check_classes(classes, samples)
        self.seed, self.samples, self.classes, self.turns, self.noise = seed, samples, classes, turns, noise

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        generator = self.generator()
        targets = torch.arange(self.samples) % self.classes
        radius = torch.rand(self.samples, generator=generator)
        angle = 2 * math.pi * (self.turns * radius + targets / self.classes)
        curve = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        noise = self.noise * torch.randn(self.samples, 2, generator=generator)
        return curve + noise, targets, TargetSpec("class", self.classes)
