"""The minibatches of all members, each in its own order and with its own augmentation: those of its lone twin."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dlrun.spec import Batch
from dlrun.stacking._step import StackedBatch
from dlrun.trainer import Trainer


class StackedBatches:
    """An epoch of the members, from the minibatch on where they stand. Members of one seed see the same samples, which are
    gathered once.

    Args:
        trainers: of the members, whose data are the same but for order and augmentation.
        shared: whether they are given as one minibatch for all; None: if all have the same seed. It is kept when members
            leave, since other kernels may round otherwise.
    """

    def __init__(self, trainers: Sequence[Trainer], shared: bool | None = None) -> None:
        self.seeds = [trainer.seed for trainer in trainers]
        self.shared = len(set(self.seeds)) == 1 if shared is None else shared
        self._epochs = {t.seed: t.run.data.epoch(t.run.epoch, t.batch) for t in reversed(trainers)}

    def next(self) -> StackedBatch:
        """The next minibatch of each member."""
        batches: dict[int, Batch] = {seed: next(epoch) for seed, epoch in self._epochs.items()}
        if self.shared:
            return StackedBatch(*batches[self.seeds[0]], shared=True)
        members = [batches[seed] for seed in self.seeds]
        return StackedBatch(*(torch.stack(parts) for parts in zip(*members, strict=True)), shared=False)

    def keep(self, rows: Sequence[int]) -> None:
        """Goes on with these members only."""
        self.seeds = [self.seeds[row] for row in rows]
        self._epochs = {seed: epoch for seed, epoch in self._epochs.items() if seed in self.seeds}
