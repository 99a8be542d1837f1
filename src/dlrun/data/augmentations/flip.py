from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun import streams
from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import per_sample


@AUGMENTATIONS.register("flip")
class Flip(Augmentation):
    """Mirrors images at random. Not for digits or letters, whose mirror images are other signs.

    Args:
        p: probability that a sample is mirrored.
        direction: horizontal swaps left and right, vertical swaps top and bottom.

    Shapes: (N, C, H, W) float -> the same.
    """

    def __init__(
        self, *, p: Annotated[float, Ge(0), Le(1)] = 0.5, direction: Literal["horizontal", "vertical"] = "horizontal"
    ) -> None:
        self.p = p
        self.axis = 3 if direction == "horizontal" else 2

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        chosen = per_sample(streams.uniform(key, (len(inputs),)) < self.p)
        return torch.where(chosen, inputs.flip(self.axis), inputs)
