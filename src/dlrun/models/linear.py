"""`model=linear`: an affine map."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._init import Init, initialize


@MODELS.register("linear")
class Linear(nn.Module):
    """An affine map y = Wx + b: linear, logistic and softmax regression, by the loss; images are flattened.

    With a threshold on y (which the loss applies when it decides) it is the perceptron, `model=perceptron`. Under loss=l2 its
    optimum is known: `optimizer=closed_form`.

    Args:
        input_shape: shape of one input; given by the data.
        num_outputs: size of the raw output; given by the loss.
        bias: whether b is there.
        init: initialisation of the weights; biases start at 0.

    Shapes: (N, *input_shape) -> (N, num_outputs).
    """

    solves: ClassVar[frozenset[str]] = frozenset({"l2"})  # the losses that `solve` minimises

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, *, bias: bool = True, init: Init = "glorot_uniform"
    ) -> None:
        super().__init__()
        self.head = nn.Linear(math.prod(input_shape), num_outputs, bias=bias)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))

    def solve(self, inputs: Tensor, targets: Tensor, decay: float = 0.0) -> None:
        """Sets W and b to the minimum of mean |Wx + b - y|² + decay |W|², the one of least norm where there are several.

        Solved by the singular value decomposition in float64, without forming X^T X, whose condition is the square of X's.

        Args:
            inputs: (N, *input_shape).
            targets: (N, num_outputs).
            decay: factor of the squared weights; biases are free.
        """
        x, y = (values.detach().flatten(1).double().cpu() for values in (inputs, targets))
        size = x.shape[1]
        if self.head.bias is not None:
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        if decay:  # |X θ - y|² + N decay |W|² as the squares of further rows, whose targets are 0
            x = torch.cat([x, math.sqrt(len(y) * decay) * torch.eye(size, x.shape[1], dtype=x.dtype)])
            y = torch.cat([y, torch.zeros(size, y.shape[1], dtype=y.dtype)])
        self.set(torch.linalg.lstsq(x, y, driver="gelsd").solution.T)

    @torch.no_grad()
    def set(self, parameters: Tensor) -> None:
        """Writes (num_outputs, inputs), or one column more for the biases, into the parameters."""
        size = self.head.in_features
        self.head.weight.copy_(parameters[:, :size])
        if self.head.bias is not None:
            self.head.bias.copy_(parameters[:, size])
