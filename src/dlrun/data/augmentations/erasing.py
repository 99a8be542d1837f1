from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dlrun import streams
from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import between, per_sample, subkeys
from dlrun.registry import ConfigError


@AUGMENTATIONS.register("erasing")
class Erasing(Augmentation):
    """Paints a random rectangle over images, so that the network cannot rely on one part.

    Source: Zhong et al. (2020), "Random erasing data augmentation". Differs: one value fills the rectangle, and a
    rectangle wider or higher than the image is clipped to it.

    Args:
        p: probability that a sample is changed.
        min_area: smallest share of the area that is painted over.
        max_area: largest share; uniform in between.
        max_ratio: height : width, relative to the image's, is log-uniform between 1 / max_ratio and max_ratio.
        fill: value of the rectangle, in [0, 1].

    Shapes: (N, C, H, W) float -> the same.

    Raises:
        ConfigError: `min_area` above `max_area`.
    """

    def __init__(
        self,
        *,
        p: Annotated[float, Ge(0), Le(1)] = 0.5,
        min_area: Annotated[float, Gt(0), Le(1)] = 0.02,
        max_area: Annotated[float, Gt(0), Le(1)] = 0.25,
        max_ratio: Annotated[float, Ge(1)] = 3.0,
        fill: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        if min_area > max_area:
            raise ConfigError(
                f"data.augmentation.erasing.min_area: got {min_area}; expected at most max_area, {max_area}"
            )
        self.p, self.fill = p, fill
        self.area = min_area, max_area
        self.log_ratio = math.log(max_ratio)

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        of_p, of_area, of_ratio, of_top, of_left = subkeys(key, 5)
        n, (height, width) = len(inputs), inputs.shape[-2:]
        area = between(of_area, (n,), *self.area)
        ratio = between(of_ratio, (n,), -self.log_ratio, self.log_ratio).exp()
        rows = _span(of_top, (area * ratio).sqrt(), height)  # (N, H)
        columns = _span(of_left, (area / ratio).sqrt(), width)  # (N, W)
        chosen = per_sample(streams.uniform(of_p, (n,)) < self.p)
        return inputs.masked_fill(chosen & rows[:, None, :, None] & columns[:, None, None, :], self.fill)


def _span(key: Tensor, share: Tensor, size: int) -> Tensor:
    """(N, size) bool: an interval of `share` (N,) of the pixels, at least one, at a random place."""
    length = (share * size).round().clamp(1, size)
    first = (streams.uniform(key, share.shape) * (size - length + 1)).floor()
    place = torch.arange(size, device=share.device)
    return (place >= first[:, None]) & (place < (first + length)[:, None])
