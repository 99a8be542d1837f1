"""The minibatches of all members, each in its own order and with its own augmentation: those of its lone twin."""

from __future__ import annotations

from collections.abc import Container, Sequence

import torch

from dlrun.spec import Batch
from dlrun.stacking._step import StackedBatch
from dlrun.trainer import Trainer


class StackedBatches:
    """An epoch of the members, from the minibatch on where they stand. Members of one seed see the same samples, which are
    gathered once; if all have one, they are given as one minibatch for all.

    Args:
        trainers: of the members, whose data are the same but for order and augmentation.
        left: numbers of those that have left the stack, which get the samples of another.
    """

    def __init__(self, trainers: Sequence[Trainer], left: Container[int] = ()) -> None:
        self.shared = len({trainer.seed for trainer in trainers}) == 1
        there = [trainer for row, trainer in enumerate(trainers) if row not in left]
        self._epochs = {t.seed: t.run.data.epoch(t.run.epoch, t.batch) for t in reversed(there)}
        self._seeds = [there[0].seed if row in left else trainer.seed for row, trainer in enumerate(trainers)]

    def next(self) -> StackedBatch:
        """The next minibatch of each member."""
        batches: dict[int, Batch] = {seed: next(epoch) for seed, epoch in self._epochs.items()}
        if self.shared:
            return StackedBatch(*batches[self._seeds[0]], shared=True)
        members = [batches[seed] for seed in self._seeds]
        inputs, targets, indices = (torch.stack(parts) for parts in zip(*members, strict=True))
        return StackedBatch(inputs, targets, indices, shared=False)
