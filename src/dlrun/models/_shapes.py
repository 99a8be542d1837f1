"""What shapes of input a model takes, and the errors for those it does not."""

from __future__ import annotations

from collections.abc import Sequence

from dlrun.registry import ConfigError


def describe(input_shape: Sequence[int]) -> str:
    """'images of 1x28x28', 'signals of 2 channels and 50 steps' or 'vectors of 20 values'."""
    if len(input_shape) == 3:
        return f"images of {'x'.join(map(str, input_shape))}"
    if len(input_shape) == 2:
        return f"signals of {_count(input_shape[0], 'channel')} and {_count(input_shape[1], 'step')}"
    if len(input_shape) == 1:
        return f"vectors of {_count(input_shape[0], 'value')}"
    return f"inputs of shape {tuple(input_shape)}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def image_shape(
    model: str, input_shape: Sequence[int], smallest: int = 1, hint: str = "", instead: str = ""
) -> tuple[int, int, int]:
    """(channels, height, width) of the images. Raises ConfigError for other inputs, adding `instead` (or which models take
    them), and for height or width under `smallest`, adding `hint`."""
    if len(input_shape) != 3:
        fitting = "use conv1d or mlp" if len(input_shape) == 2 else "use mlp or linear"
        raise ConfigError(
            f"model.name: {model} needs images (channels, height, width), the data gives {describe(input_shape)}; "
            f"{instead or fitting}"
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ConfigError(
            f"model.name: {model} needs images of at least {smallest}x{smallest}, "
            f"the data gives {describe(input_shape)}{hint}"
        )
    return channels, height, width


def signal_shape(input_shape: Sequence[int]) -> tuple[int, int]:
    """(channels, steps) of inputs read as signals: a vector has one channel, an image `height` steps of channels x width."""
    if len(input_shape) == 1:
        return 1, input_shape[0]
    if len(input_shape) == 3:
        return input_shape[0] * input_shape[2], input_shape[1]
    channels, steps = input_shape
    return channels, steps
