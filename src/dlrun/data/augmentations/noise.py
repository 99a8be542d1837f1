from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from dlrun import streams
from dlrun.data._augmentation import AUGMENTATIONS, Augmentation


@AUGMENTATIONS.register("noise")
class Noise(Augmentation):
    """Adds independent Gaussian noise to every value; not clipped, so that its standard deviation is the one asked for.

    Args:
        std: standard deviation, in units of the value range [0, 1] for images and of each feature's training standard
            deviation for vectors (original units where `data.normalize=unit`).

    Shapes: (N, ...) float -> the same.
    """

    needs_image = False

    def __init__(self, *, std: Annotated[float, Ge(0)] = 0.1) -> None:
        self.std = std

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        return inputs + streams.normal(key, inputs.shape) * self.std
