"""The augmentation registry, and what an augmentation is: batched tensor code, new for each sample and step."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dlrun.data._entries import Node, check_entries, entries
from dlrun.registry import ConfigError, Registry
from dlrun.spec import TargetSpec

AUGMENTATIONS = Registry("data.augmentation", "dlrun.data.augmentations")


class Augmentation:
    """Changes training inputs at random; validation and test inputs never pass through it.

    Inputs come as float32 in [0, 1] (images, before normalisation) or as standardised vectors. All randomness comes
    from `key`, so that the same step of the same seed gives the same batch on every device. The constructor takes settings
    and, where it names them, the context `input_shape` and `target` (a `TargetSpec`).
    """

    needs_image: bool = True

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        """(N, *input_shape) float32 -> the same shape; `key`: int32 (2,), for `dlrun.streams.uniform` and friends."""
        raise NotImplementedError

    def with_targets(self, inputs: Tensor, targets: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """The same together with the targets (see `TargetKind`; real ones standardised), for an augmentation that changes
        them in a way that is known; here they stay as they are. Neither tensor is changed in place."""
        return self(inputs, key), targets


class _Function(Augmentation):
    """A function of inputs and key that a user has registered."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function = function

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        return self.function(inputs, key)


def build_augmentations(
    node: Node, input_shape: tuple[int, ...], target: TargetSpec | None = None, why_vectors: str = ""
) -> list[tuple[str, Augmentation]]:
    """The augmentations of `data.augmentation` (name -> settings) in the order written; an entry that is null is off.
    `why_vectors` is said of inputs that are no images.

    Raises:
        ConfigError: an unknown name, a wrong setting, or an augmentation of images for vectors or sequences.
    """
    check_entries(AUGMENTATIONS, node)
    built = []
    for name, settings in entries(node).items():
        key = f"data.augmentation.{name}"
        if getattr(AUGMENTATIONS.get(name), "needs_image", True) and len(input_shape) != 3:
            fitting = [n for n in AUGMENTATIONS.names() if not getattr(AUGMENTATIONS.get(n), "needs_image", True)]
            given = "sequences" if len(input_shape) == 2 else "vectors"
            given += f" of {input_shape[0]} {'features' if len(input_shape) == 1 else 'channels'}"
            raise ConfigError(
                f"{key}: needs images, but inputs are {given}{why_vectors}; these fit: {', '.join(fitting)}"
            )
        context = {"input_shape": input_shape, "target": target}
        found = AUGMENTATIONS.build({**settings, "name": name}, key, **context)
        built.append((name, found if isinstance(found, Augmentation) else _Function(found)))
    return built
