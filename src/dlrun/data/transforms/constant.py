from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dlrun.data._transform import TRANSFORMS, Transform, flat_size


@TRANSFORMS.register("constant")
class Constant(Transform):
    """Appends the constant feature 1, so that a model without a bias has one: w x + b = (w, b) (x, 1).

    The 1 stays 1 whatever `data.normalize` says. Images are flattened.

    Args:
        input_shape: shape of one input; given by the data.

    Shapes: (N, *input_shape) -> (N, D + 1), where D is the number of values of an input.
    """

    def __init__(self, input_shape: tuple[int, ...]) -> None:
        self.size = flat_size(input_shape) + 1

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)

    def names(self, names: Sequence[str]) -> Sequence[str]:
        return [*names, "1"]
