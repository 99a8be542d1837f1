from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor

from dlrun import streams
from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import Padding


@AUGMENTATIONS.register("shift")
class Shift(Augmentation):
    """Moves images by whole pixels, exactly: the same as padding them and cropping at random to the old size.

    Source: He et al. (2016), "Deep residual learning for image recognition", section 4.2 (4 pixels on CIFAR-10).

    Args:
        pixels: largest shift in each direction; every whole number up to it is equally likely, per axis.
        padding: what comes in at the border: zero, or edge, the border pixel repeated.

    Shapes: (N, C, H, W) float -> the same.
    """

    def __init__(self, *, pixels: Annotated[int, Ge(0), Le(4096)] = 4, padding: Padding = "zero") -> None:
        self.pixels = pixels
        self.mode = "constant" if padding == "zero" else "replicate"

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        n, channels, height, width = inputs.shape
        padded = F.pad(inputs, (self.pixels,) * 4, mode=self.mode)
        corner = (
            streams.uniform(key, (2, n)) * (2 * self.pixels + 1)
        ).long()  # of the window cut out of the padded image
        rows = corner[0, :, None] + torch.arange(height, device=inputs.device)  # (N, H)
        columns = corner[1, :, None] + torch.arange(width, device=inputs.device)  # (N, W)
        source = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]  # (N, H, W)
        source = source.view(n, 1, -1).expand(-1, channels, -1)
        return padded.flatten(2).gather(2, source).view_as(inputs)
