"""`model=linear`: an affine map."""

from __future__ import annotations

import math

from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._init import Init, initialize


@MODELS.register("linear")
class Linear(nn.Module):
    """An affine map y = Wx + b: linear, logistic and softmax regression, by the loss; images are flattened.

    With a threshold on y (which the loss applies when it decides) it is the perceptron, `model=perceptron`.

    Args:
        input_shape: shape of one input; given by the data.
        num_outputs: size of the raw output; given by the loss.
        bias: whether b is there.
        init: initialisation of the weights; biases start at 0.

    Shapes: (N, *input_shape) -> (N, num_outputs).
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, *, bias: bool = True, init: Init = "glorot_uniform"
    ) -> None:
        super().__init__()
        self.head = nn.Linear(math.prod(input_shape), num_outputs, bias=bias)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))
