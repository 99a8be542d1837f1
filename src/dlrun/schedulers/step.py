"""The step schedule."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt, Le

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("step")
class Step(Scheduler):
    """The learning rate is multiplied by `gamma` every `step_epochs` epochs, or at the given milestones.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
        step_epochs: epochs between two drops.
        gamma: factor of a drop.
        milestones: epochs after which to drop (fractions allowed), instead of every `step_epochs`; null: none.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        step_epochs: Annotated[float, Gt(0)] = 3.0,
        gamma: Annotated[float, Gt(0), Le(1)] = 0.1,
        milestones: tuple[Annotated[float, Gt(0)], ...] | None = None,
    ) -> None:
        super().__init__(total_steps, steps_per_epoch)
        self.gamma = gamma
        self.interval = max(1, round(step_epochs * self.steps_per_epoch))
        self.milestones = None if milestones is None else [round(m * self.steps_per_epoch) for m in milestones]

    def shape(self, step: int) -> float:
        if self.milestones is None:
            return float(self.gamma ** (step // self.interval))
        return float(self.gamma ** sum(step >= milestone for milestone in self.milestones))
