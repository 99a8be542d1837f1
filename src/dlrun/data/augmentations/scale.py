from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import Padding, between, warp_affine
from dlrun.registry import ConfigError


@AUGMENTATIONS.register("scale")
class Scale(Augmentation):
    """Enlarges or shrinks the content of images about their middle, with bilinear interpolation.

    Args:
        min_factor: smallest factor; below 1 shrinks.
        max_factor: largest factor; factors are uniform in between.
        padding: what comes in at the border of a shrunk image: zero, or edge, the value at the border.

    Shapes: (N, C, H, W) float -> the same.

    Raises:
        ConfigError: `min_factor` above `max_factor`.
    """

    def __init__(
        self,
        *,
        min_factor: Annotated[float, Gt(0)] = 0.9,
        max_factor: Annotated[float, Gt(0)] = 1.1,
        padding: Padding = "zero",
    ) -> None:
        if min_factor > max_factor:
            raise ConfigError(
                f"data.augmentation.scale.min_factor: got {min_factor}; expected at most max_factor, {max_factor}"
            )
        self.range = min_factor, max_factor
        self.padding = padding

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        shrink = 1 / between(key, (len(inputs),), *self.range)
        return warp_affine(inputs, torch.diag_embed(shrink[:, None].expand(-1, 2)), padding=self.padding)
