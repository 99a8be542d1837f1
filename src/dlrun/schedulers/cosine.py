"""Cosine annealing."""

from __future__ import annotations

import math
from typing import Annotated

from annotated_types import Ge, Le

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("cosine")
class Cosine(Scheduler):
    """Half a cosine from the learning rate of the optimizer to a final one, over the whole run.

    Source: Loshchilov and Hutter (2017), section 3. Differs: a single period, no restarts.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
        final_factor: what is left of the learning rate at the end.
    """

    def __init__(
        self, total_steps: int, steps_per_epoch: int, *, final_factor: Annotated[float, Ge(0), Le(1)] = 0.0
    ) -> None:
        super().__init__(total_steps, steps_per_epoch)
        self.final_factor = final_factor

    def shape(self, step: int) -> float:
        progress = min(1.0, step / self.total_steps)
        return self.final_factor + (1 - self.final_factor) * (1 + math.cos(math.pi * progress)) / 2
