"""The constant schedule."""

from __future__ import annotations

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("constant")
class Constant(Scheduler):
    """The learning rate of the optimizer throughout.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
    """

    def shape(self, step: int) -> float:
        return 1.0
