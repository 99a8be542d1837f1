"""The one-cycle schedule."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from annotated_types import Ge, Le

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("one_cycle")
class OneCycle(Scheduler):
    """The learning rate rises to that of the optimizer and then falls far below where it began, over the whole run.

    Source: Smith and Topin (2019). Differs: the momentum stays as it is; two phases, as in PyTorch's OneCycleLR, whose
    learning rates these are.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
        pct_start: share of the run in which the learning rate rises.
        div_factor: the learning rate begins at 1 / div_factor of its peak.
        final_div_factor: it ends at 1 / final_div_factor of where it began.
        anneal: "cos" or "linear".
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        pct_start: Annotated[float, Ge(0), Le(1)] = 0.3,
        div_factor: Annotated[float, Ge(1)] = 25.0,
        final_div_factor: Annotated[float, Ge(1)] = 10000.0,
        anneal: Literal["cos", "linear"] = "cos",
    ) -> None:
        super().__init__(total_steps, steps_per_epoch)
        self.peak_step = pct_start * self.total_steps - 1
        self.initial = 1 / div_factor
        self.final = self.initial / final_div_factor
        self.anneal = anneal

    def shape(self, step: int) -> float:
        last = self.total_steps - 1
        step = min(step, last)
        if step <= self.peak_step:
            return self._between(self.initial, 1.0, step / self.peak_step if self.peak_step else 1.0)
        return self._between(1.0, self.final, (step - self.peak_step) / (last - self.peak_step))

    def _between(self, start: float, end: float, progress: float) -> float:
        """`start` at progress 0, `end` at progress 1."""
        if self.anneal == "linear":
            return start + (end - start) * progress
        return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
