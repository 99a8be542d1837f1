"""Round clusters, one per class."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._toy import SampleCount, ToySource, check_classes
from dlrun.spec import TargetSpec


@DATASETS.register("blobs")
class Blobs(ToySource):
    """Round Gaussian clusters, one per class, their centres spread evenly on a circle.

    Args:
        seed: seed of the points; given by dlrun.
        samples: number of points, spread evenly over the classes.
        classes: number of clusters.
        std: standard deviation of a cluster in each direction.
        radius: radius of the circle of centres; the default keeps four clusters 8 standard deviations apart.

    Shapes: inputs float32 (N, 2), targets int64 (N,).
    """

    def __init__(
        self,
        seed: int,
        *,
        samples: SampleCount = 2000,
        classes: Annotated[int, Ge(2)] = 4,
        std: Annotated[float, Gt(0)] = 0.5,
        radius: Annotated[float, Gt(0)] = 3.0,
    ) -> None:
        check_classes(classes, samples)
        self.seed, self.samples, self.classes, self.std, self.radius = seed, samples, classes, std, radius

    def draw(self) -> tuple[Tensor, Tensor, TargetSpec]:
        targets = torch.arange(self.samples) % self.classes
        angle = 2 * math.pi * targets / self.classes
        centres = self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)
        noise = self.std * torch.randn(self.samples, 2, generator=self.generator())
        return centres + noise, targets, TargetSpec("class", self.classes)
