from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import Padding, between, warp_affine


@AUGMENTATIONS.register("rotation")
class Rotation(Augmentation):
    """Turns images about their middle, with bilinear interpolation.

    Args:
        degrees: the angle is uniform between -degrees and degrees.
        padding: what comes in at the border: zero, or edge, the value at the border.

    Shapes: (N, C, H, W) float -> the same.
    """

    def __init__(self, *, degrees: Annotated[float, Ge(0), Le(180)] = 10.0, padding: Padding = "zero") -> None:
        self.radians = math.radians(degrees)
        self.padding = padding

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        return rotate(inputs, between(key, (len(inputs),), -self.radians, self.radians), self.padding)


def rotate(images: Tensor, radians: Tensor, padding: Padding = "zero") -> Tensor:
    """Turns each image counter-clockwise by its own angle (N,)."""
    cos, sin = radians.cos(), radians.sin()
    matrix = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)  # y points down
    return warp_affine(images, matrix, padding=padding)
