"""`model=constant`: outputs that do not depend on the input."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from dlrun.models import MODELS


@MODELS.register("constant")
class Constant(nn.Module):
    """The same outputs for every input, each a parameter that starts near 0 (normal, standard deviation 0.01).

    Trained, it is the best constant prediction: the mean of the targets (loss=l2), their distribution without regard to the
    inputs (the likelihoods), and, with task=density, the distribution of the inputs themselves.

    Args:
        input_shape: shape of one input; given by the data.
        num_outputs: size of the raw output; given by the loss.

    Shapes: (N, *input_shape) -> (N, num_outputs).
    """

    ignores_inputs: ClassVar[bool] = True

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.outputs = nn.Parameter(0.01 * torch.randn(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs.repeat(len(x), 1)  # copies: whoever keeps outputs must not see later updates
