"""The augmentation registry, and what an augmentation is: batched tensor code, new for each sample and step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dlrun.registry import ConfigError, Registry, did_you_mean

AUGMENTATIONS = Registry("data.augmentation", "dlrun.data.augmentations")


class Augmentation:
    """Changes training inputs at random; validation and test inputs never pass through it.

    Inputs come as float32 in [0, 1] (images, before normalisation) or as standardised vectors. All randomness comes
    from `key`, so that the same step of the same seed gives the same batch on every device.
    """

    needs_image: bool = True

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        """(N, *input_shape) float32 -> the same shape; `key`: int32 (2,), for `dlrun.streams.uniform` and friends."""
        raise NotImplementedError


Node = Mapping[str, Mapping[str, Any] | None] | None


def check_augmentations(node: Node) -> None:
    """Checks names and settings of `data.augmentation` (name -> settings); needs no data. An entry that is null is off."""
    for name, settings in _entries(node).items():
        if "import" not in settings and name not in AUGMENTATIONS.names():
            allowed = AUGMENTATIONS.names()
            raise ConfigError(
                f"data.augmentation: unknown '{name}'; allowed: {', '.join(allowed)}{did_you_mean(name, allowed)}"
            )
        AUGMENTATIONS.check({**settings, "name": name}, f"data.augmentation.{name}")


def build_augmentations(node: Node, input_shape: tuple[int, ...]) -> list[tuple[str, Augmentation]]:
    """The augmentations of `data.augmentation` (name -> settings) in the order written.

    Raises:
        ConfigError: an unknown name, a wrong setting, or an augmentation of images for vectors.
    """
    check_augmentations(node)
    built = []
    for name, settings in _entries(node).items():
        key = f"data.augmentation.{name}"
        if getattr(AUGMENTATIONS.get(name), "needs_image", True) and len(input_shape) != 3:
            fitting = [n for n in AUGMENTATIONS.names() if not getattr(AUGMENTATIONS.get(n), "needs_image", True)]
            raise ConfigError(
                f"{key}: needs images, but inputs are vectors of {input_shape[0]} features; "
                f"these fit: {', '.join(fitting)}"
            )
        built.append((name, AUGMENTATIONS.build({**settings, "name": name}, key, input_shape=input_shape)))
    return built


def _entries(node: Node) -> dict[str, Mapping[str, Any]]:
    return {name: settings for name, settings in (node or {}).items() if settings is not None}
