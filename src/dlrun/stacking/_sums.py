"""What an epoch has gathered of all members, until their own trainers ask for it."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch
from torch import Tensor

from dlrun.metrics._collection import MetricCollection
from dlrun.metrics._sums import EpochSums
from dlrun.stacking._step import StackedResult
from dlrun.trainer import Trainer

KEPT = 1 << 24  # values of outputs of all members that wait for the metrics to see them


class StackedSums:
    """Loss and objective summed over the samples, outputs for the metrics, and whether all was finite.

    Args:
        trainers: of the members, whose own sums and metrics begin anew.
        device: of the results.
        left: numbers of members that have left the stack.
    """

    def __init__(self, trainers: Sequence[Trainer], device: torch.device, left: Container[int] = ()) -> None:
        self.trainers = {row: trainer for row, trainer in enumerate(trainers) if row not in left}
        self.samples = 0
        self.finite = torch.ones(len(trainers), dtype=torch.bool, device=device)  # so far
        self._sums = torch.zeros(2, len(trainers), dtype=torch.float64, device=device)  # of loss and objective
        self._seen: list[tuple[Tensor, Tensor]] = []  # outputs and targets that no metric has seen yet
        self._kept = 0
        for trainer in self.trainers.values():
            trainer.sums = EpochSums()
            trainer.train_metrics = MetricCollection(trainer.run.loss, trainer.run.task.target())

    def add(self, result: StackedResult, count: int) -> None:
        """Adds a minibatch of `count` samples of each member; waits for nothing."""
        self.samples += count
        self._sums.add_(torch.stack([result.loss, result.objective]).double(), alpha=count)
        self._seen.append((result.outputs, result.targets))
        self._kept += result.outputs.numel()
        if self._kept >= KEPT:
            self._show_metrics()

    def share(self) -> None:
        """Gives the members' trainers their sums and metrics."""
        self._show_metrics()
        losses, objectives = self._sums.tolist()
        for row, trainer in self.trainers.items():
            trainer.sums = EpochSums(losses[row], objectives[row], self.samples)

    def leave(self, row: int) -> None:
        """Forgets a member."""
        self.trainers.pop(row, None)

    def _show_metrics(self) -> None:
        if not self._seen:
            return
        outputs, targets = (torch.cat(parts, 1) for parts in zip(*self._seen, strict=True))
        self._seen, self._kept = [], 0
        for row, trainer in self.trainers.items():
            trainer.train_metrics.update(outputs[row], targets[row])
