"""Inputs as sequences: what the steps of an image, a signal or a vector are.

| input shape | steps | features of a step | what they are                                  |
| (C, H, W)   | H     | C * W              | the rows of an image, from top to bottom       |
| (C, L)      | L     | C                  | the samples of a signal with C channels        |
| (D,)        | D     | 1                  | the values of a vector, in the order they have |
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dlrun.models._shapes import describe
from dlrun.registry import ConfigError


def steps_of(model: str, input_shape: Sequence[int]) -> tuple[int, int]:
    """(number of steps, features of each). Raises ConfigError, naming the model, for inputs of more than three axes."""
    if len(input_shape) == 3:
        channels, height, width = input_shape
        return height, channels * width
    if len(input_shape) == 2:
        return input_shape[1], input_shape[0]
    if len(input_shape) == 1:
        return input_shape[0], 1
    raise ConfigError(
        f"model.name: {model} needs images (channels, height, width), sequences (channels, length) or vectors, "
        f"the data gives {describe(input_shape)}"
    )


def to_steps(x: Tensor) -> Tensor:
    """(N, *input_shape) -> (N, steps, features)."""
    if x.dim() == 4:
        return x.transpose(1, 2).flatten(2)  # (N, H, C, W) -> (N, H, C * W)
    return x.transpose(1, 2) if x.dim() == 3 else x.unsqueeze(2)
