"""Polynomial decay."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("polynomial")
class Polynomial(Scheduler):
    """A power of the share of the run that is left, (1 - step / total_steps) ** power: linear decay for power 1.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
        power: exponent.
        final_factor: what is left of the learning rate at the end.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        power: Annotated[float, Gt(0)] = 1.0,
        final_factor: Annotated[float, Ge(0), Le(1)] = 0.0,
    ) -> None:
        super().__init__(total_steps, steps_per_epoch)
        self.power = power
        self.final_factor = final_factor

    def shape(self, step: int) -> float:
        left = max(0.0, 1 - step / self.total_steps)
        return float(self.final_factor + (1 - self.final_factor) * left**self.power)
