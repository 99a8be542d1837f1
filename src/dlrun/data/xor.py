"""Four clusters labelled by a logical function."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import Labels, SampleCount, ToySource, two_class
from dlrun.spec import TargetSpec


@DATASETS.register("xor")
class Xor(ToySource):
    """Points around the corners (0,0), (0,1), (1,0), (1,1), as many at each, labelled by a logical function of these.

    XOR is the smallest set that no linear model separates (at most 3 corners of 4 right); AND and OR are separable.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points.
        noise: standard deviation around the corners; 0 gives the truth table itself.
        function: the logical function that labels a corner.
        labels: binary (0, 1) or sign (-1, +1).

    Shapes: inputs float32 (N, 2), targets float32 (N, 1).
    """

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 2000,
        noise: Annotated[float, Ge(0)] = 0.1,
        function: Literal["xor", "and", "or"] = "xor",
        labels: Labels = "binary",
    ) -> None:
        self.seed, self.samples, self.noise, self.function, self.labels = seed, samples, noise, function, labels

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        corner = torch.arange(self.samples) % 4
        a, b = corner // 2 == 1, corner % 2 == 1
        label = {"xor": a ^ b, "and": a & b, "or": a | b}[self.function]
        inputs = torch.stack([a, b], dim=1) + self.noise * torch.randn(self.samples, 2, generator=self.generator())
        return inputs, *two_class(label, self.labels)
