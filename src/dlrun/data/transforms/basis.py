from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import torch
from annotated_types import MinLen
from torch import Tensor

from dlrun.data._transform import TRANSFORMS, Transform, flat_size

Function = Literal["x", "square", "cube", "sqrt", "abs", "sin", "cos", "exp", "log", "quadratic_kernel"]
ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "x": lambda x: x,
    "square": torch.square,
    "cube": lambda x: x**3,
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "sin": torch.sin,
    "cos": torch.cos,
    "exp": torch.exp,
    "log": torch.log,
}


@TRANSFORMS.register("basis")
class Basis(Transform):
    """Fixed basis functions phi(x): a linear model on them is linear in its weights, not in x.

    The features are phi(x1), ..., phi(xD) of the first function, then those of the second, and so on. `quadratic_kernel` gives
    x1^2, ..., xD^2 and sqrt(2) xi xj for all i < j, so that phi(x).phi(x') = (x.x')^2. Images are flattened.

    Args:
        input_shape: shape of one input; given by the data.
        functions: x (the features themselves), square, cube, sqrt, abs, sin, cos, exp, log or quadratic_kernel; one or more.

    Shapes: (N, *input_shape) -> (N, D) for each function of the D values of an input, (N, D (D + 1) / 2) for
        quadratic_kernel.
    """

    def __init__(
        self, input_shape: tuple[int, ...], *, functions: Annotated[tuple[Function, ...], MinLen(1)] = ("x", "square")
    ) -> None:
        self.functions = functions
        self.inputs = flat_size(input_shape)
        pairs = self.inputs * (self.inputs + 1) // 2
        self.size = sum(pairs if name == "quadratic_kernel" else self.inputs for name in functions)

    def __call__(self, inputs: Tensor) -> Tensor:
        return torch.cat(
            [quadratic(inputs) if f == "quadratic_kernel" else ELEMENTWISE[f](inputs) for f in self.functions], 1
        )

    def names(self, names: Sequence[str]) -> Sequence[str]:
        found: list[str] = []
        for function in self.functions:
            if function == "quadratic_kernel":
                found += [f"{name}^2" for name in names]
                found += [f"sqrt(2) {a} {b}" for i, a in enumerate(names) for b in names[i + 1 :]]
            else:
                found += names if function == "x" else [f"{function}({name})" for name in names]
        return found


def quadratic(inputs: Tensor) -> Tensor:
    """The feature map of the kernel (x.x')^2: (N, D) -> (N, D (D + 1) / 2)."""
    first, second = torch.triu_indices(inputs.shape[1], inputs.shape[1], offset=1)
    return torch.cat([inputs.square(), math.sqrt(2) * inputs[:, first] * inputs[:, second]], 1)
