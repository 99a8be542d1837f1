"""What a metric is: an accumulator over the batches of an evaluation, chosen by the kind of the target."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from dlrun.spec import TargetKind, TargetSpec

if TYPE_CHECKING:
    from dlrun.losses._base import Loss


class Metric:
    """Accumulates over the batches of one evaluation; `update` must not synchronise the device.

    Args:
        loss: gives predictions, probabilities and standard deviations from raw outputs.
        target: what is predicted.

    Attributes:
        name: as in `results.json`.
        kinds: the target kinds it is reported for.
        higher_is_better: the direction of improvement.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[TargetKind]]
    higher_is_better: ClassVar[bool]

    def __init__(self, loss: Loss, target: TargetSpec) -> None:
        self.loss = loss
        self.target = target

    @classmethod
    def applies(cls, loss: Loss, target: TargetSpec) -> bool:
        """Whether the metric is defined for this loss and target (an NLL needs a likelihood, AUROC needs scores)."""
        return target.kind in cls.kinds

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds a batch: raw outputs (N, num_outputs) and targets as in `TargetKind`."""
        raise NotImplementedError

    def compute(self) -> float | None:
        """The value over everything seen since construction; None where it is undefined (AUROC of a single class)."""
        raise NotImplementedError
