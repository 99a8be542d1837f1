from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import between, per_sample, subkeys
from dlrun.registry import ConfigError

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in a grey value, ITU-R BT.601


@AUGMENTATIONS.register("colour")
class Colour(Augmentation):
    """Changes colours: saturation, then a shift of each channel; clipped to [0, 1].

    Args:
        input_shape: (3, height, width); given by the data.
        saturation: distances from the grey image are multiplied by a factor uniform between 1 - saturation and
            1 + saturation.
        shift: each channel is moved by a number uniform between -shift and shift.

    Shapes: (N, 3, H, W) float -> the same.

    Raises:
        ConfigError: the images have other than three channels.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        *,
        saturation: Annotated[float, Ge(0), Le(1)] = 0.3,
        shift: Annotated[float, Ge(0), Le(1)] = 0.05,
    ) -> None:
        if input_shape[0] != 3:
            raise ConfigError(
                f"data.augmentation.colour: needs images of 3 channels, got {input_shape[0]}; "
                f"for grey images: brightness, contrast"
            )
        self.saturation, self.shift = saturation, shift

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        of_saturation, of_shift = subkeys(key, 2)
        n = len(inputs)
        factor = per_sample(between(of_saturation, (n,), 1 - self.saturation, 1 + self.saturation))
        grey = sum(inputs[:, i : i + 1] * weight for i, weight in enumerate(LUMA))  # (N, 1, H, W)
        coloured = torch.add(inputs * factor, grey * (1 - factor))
        return (coloured + between(of_shift, (n, 3, 1, 1), -self.shift, self.shift)).clamp(0, 1)
