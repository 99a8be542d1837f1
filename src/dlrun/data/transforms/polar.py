from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrun.data._transform import TRANSFORMS, Transform, refuse


@TRANSFORMS.register("polar")
class Polar(Transform):
    """Polar coordinates (r, theta) of points in the plane: rings around the centre are then separable by a line.

    Args:
        input_shape: (2,); given by the data.
        centre: the point from which r is measured, in original units.

    Shapes: (N, 2) -> (N, 2): r >= 0 and theta in (-pi, pi], the angle from the first axis.

    Raises:
        ConfigError: the inputs are not vectors of 2 features.
    """

    size = 2

    def __init__(self, input_shape: tuple[int, ...], *, centre: tuple[float, float] = (0.0, 0.0)) -> None:
        if tuple(input_shape) != (2,):
            what = f"{input_shape[0]} features" if len(input_shape) == 1 else f"shape {tuple(input_shape)}"
            raise refuse("polar", f"needs vectors of 2 features, but inputs have {what}; basis, polynomial and pca fit")
        self.centre = torch.tensor(centre, dtype=torch.float64)

    def __call__(self, inputs: Tensor) -> Tensor:
        x, y = (inputs - self.centre).unbind(1)
        return torch.stack([torch.hypot(x, y), torch.atan2(y, x)], 1)

    def names(self, names: Sequence[str]) -> Sequence[str]:
        return ["r", "theta"]
