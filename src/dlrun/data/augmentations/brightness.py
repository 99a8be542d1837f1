from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import between, per_sample


@AUGMENTATIONS.register("brightness")
class Brightness(Augmentation):
    """Makes images brighter or darker: values times a factor, clipped to [0, 1].

    Args:
        strength: the factor is uniform between 1 - strength and 1 + strength; 0 changes nothing.

    Shapes: (N, C, H, W) float -> the same.
    """

    def __init__(self, *, strength: Annotated[float, Ge(0), Le(1)] = 0.2) -> None:
        self.strength = strength

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        factor = between(key, (len(inputs),), 1 - self.strength, 1 + self.strength)
        return (inputs * per_sample(factor)).clamp(0, 1)
