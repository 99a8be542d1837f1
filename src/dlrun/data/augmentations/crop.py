from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import between, half_sides, subkeys, warp_affine


@AUGMENTATIONS.register("crop")
class Crop(Augmentation):
    """Cuts out a random rectangle and resizes it to the old size. For a random crop of fixed size, see `shift`.

    Source: Szegedy et al. (2015), "Going deeper with convolutions", section 6. Differs: a rectangle wider or higher
    than the image is clipped to it.

    Args:
        min_area: the rectangle's share of the area is uniform between this and 1.
        max_ratio: width : height, relative to the image's, is log-uniform between 1 / max_ratio and max_ratio.

    Shapes: (N, C, H, W) float -> the same.
    """

    def __init__(
        self, *, min_area: Annotated[float, Gt(0), Le(1)] = 0.5, max_ratio: Annotated[float, Ge(1)] = 4 / 3
    ) -> None:
        self.min_area = min_area
        self.log_ratio = math.log(max_ratio)

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        of_area, of_ratio, of_place = subkeys(key, 3)
        n = len(inputs)
        area = between(of_area, (n,), self.min_area, 1.0)
        ratio = between(of_ratio, (n,), -self.log_ratio, self.log_ratio).exp()
        share = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).clamp(max=1)  # (N, 2) of width, height
        centre = between(of_place, (n, 2), -1.0, 1.0) * (1 - share) * half_sides(inputs)
        return warp_affine(inputs, torch.diag_embed(share), centre, padding="edge")
