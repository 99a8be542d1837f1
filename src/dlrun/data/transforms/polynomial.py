from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun.data._transform import TRANSFORMS, Transform, flat_size


@TRANSFORMS.register("polynomial")
class Polynomial(Transform):
    """All monomials of the features up to a degree: a linear model on them is polynomial regression.

    They stand in the order of their degree: 1, then x1, ..., xD, then x1 x1, x1 x2, ..., and so on: xi1 xi2 ... xiK with
    i1 <= i2 <= ... <= iK. The constant 1 stays 1 whatever `data.normalize` says. Images are flattened.

    Args:
        input_shape: shape of one input; given by the data.
        degree: highest degree K.
        include_constant: whether the monomial of degree 0 is there; a model with a bias does not need it.

    Shapes: (N, *input_shape) -> (N, C(D + K, K)), where D is the number of values of an input; one less without the
        constant.
    """

    def __init__(
        self, input_shape: tuple[int, ...], *, degree: Annotated[int, Ge(1), Le(100)] = 2, include_constant: bool = True
    ) -> None:
        self.inputs, self.degree, self.include_constant = flat_size(input_shape), degree, include_constant
        self.size = math.comb(self.inputs + degree, degree) - (not include_constant)

    def __call__(self, inputs: Tensor) -> Tensor:
        blocks = [inputs.new_ones(len(inputs), 1), inputs]
        starts = list(range(self.inputs))  # where, in the block before, the monomials of x_i and later ones begin
        while len(blocks) <= self.degree:
            last, columns, places = blocks[-1], [], []
            width = 0
            for i, start in enumerate(starts):
                columns.append(inputs[:, i : i + 1] * last[:, start:])
                places.append(width)
                width += last.shape[1] - start
            blocks.append(torch.cat(columns, 1))
            starts = places
        return torch.cat(blocks if self.include_constant else blocks[1:], 1)

    def names(self, names: Sequence[str]) -> Sequence[str]:
        found = ["1"] if self.include_constant else []
        for degree in range(1, self.degree + 1):
            for factors in itertools.combinations_with_replacement(names, degree):
                powers = Counter(factors)
                found.append(" ".join(name if n == 1 else f"{name}^{n}" for name, n in powers.items()))
        return found
