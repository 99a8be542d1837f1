from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor

from dlrun import streams
from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import per_sample
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec


@AUGMENTATIONS.register("flip")
class Flip(Augmentation):
    """Mirrors images at random. Not for digits or letters, whose mirror images are other signs.

    A target that a mirror turns round, such as the angle to which a head is turned, changes its sign with `negate_target`.

    Args:
        target: what is predicted; given by the data.
        p: probability that a sample is mirrored.
        direction: horizontal swaps left and right, vertical swaps top and bottom.
        negate_target: number (from 0) of the target, in original units, whose sign changes with the image; null: none.

    Shapes: (N, C, H, W) float -> the same.

    Raises:
        ConfigError: `negate_target` where targets are neither real nor -1 and +1, or where there is none of that number.
    """

    def __init__(
        self,
        target: TargetSpec | None = None,
        *,
        p: Annotated[float, Ge(0), Le(1)] = 0.5,
        direction: Literal["horizontal", "vertical"] = "horizontal",
        negate_target: Annotated[int, Ge(0)] | None = None,
    ) -> None:
        self.p = p
        self.axis = 3 if direction == "horizontal" else 2
        self.negated = negate_target
        self.offset = 0.0
        if negate_target is not None:
            self.offset = _offset(target, negate_target)

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        return torch.where(per_sample(self._chosen(inputs, key)), inputs.flip(self.axis), inputs)

    def with_targets(self, inputs: Tensor, targets: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        flipped = self(inputs, key)
        if self.negated is None:
            return flipped, targets
        column = targets[:, self.negated]
        changed = targets.clone()
        changed[:, self.negated] = torch.where(self._chosen(inputs, key), -column - self.offset, column)
        return flipped, changed

    def _chosen(self, inputs: Tensor, key: Tensor) -> Tensor:
        return streams.uniform(key, (len(inputs),)) < self.p


def _offset(target: TargetSpec | None, number: int) -> float:
    """What is to be subtracted from a standardised target t = (y - mean) / std after its sign has changed: -y becomes
    -t - 2 mean / std."""
    key = "data.augmentation.flip.negate_target"
    if target is None or target.kind not in ("real", "sign"):
        kind = target.kind if target else "unknown"
        raise ConfigError(
            f"{key}: got {number}; needs real or sign targets, which change their sign, but they are {kind}"
        )
    if number >= target.size:
        many = f"{target.size} target{'s' * (target.size > 1)}"
        raise ConfigError(f"{key}: got {number}; expected 0 to {target.size - 1}, as the data have {many}")
    return 2 * target.mean[number] / target.std[number] if target.mean else 0.0
