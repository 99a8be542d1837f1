"""What shapes of input a model takes, and the errors for those it does not."""

from __future__ import annotations

from collections.abc import Sequence

from dlrun.registry import ConfigError


def describe(input_shape: Sequence[int]) -> str:
    """'images of 1x28x28' or 'vectors of 20 values'."""
    if len(input_shape) == 3:
        return f"images of {'x'.join(map(str, input_shape))}"
    return f"vectors of {input_shape[0]} values" if len(input_shape) == 1 else f"inputs of shape {tuple(input_shape)}"


def image_shape(
    model: str, input_shape: Sequence[int], smallest: int = 1, hint: str = "", instead: str = "use mlp or linear"
) -> tuple[int, int, int]:
    """(channels, height, width) of the images. Raises ConfigError for vectors, adding `instead`, and for height or width
    under `smallest`, adding `hint`."""
    if len(input_shape) != 3:
        raise ConfigError(
            f"model.name: {model} needs images (channels, height, width), the data gives {describe(input_shape)}; "
            f"{instead}"
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise ConfigError(
            f"model.name: {model} needs images of at least {smallest}x{smallest}, "
            f"the data gives {describe(input_shape)}{hint}"
        )
    return channels, height, width
