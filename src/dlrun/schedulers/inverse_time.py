"""Inverse time decay."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("inverse_time")
class InverseTime(Scheduler):
    """The learning rate falls as 1 / (1 + decay t) ** power, with t the number of epochs as a fraction.

    With 1/2 < power <= 1 the steps sum to infinity and their squares do not, as stochastic approximation needs.

    Source: Robbins and Monro (1951).

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
        decay: how fast it falls: with power 1 the learning rate is halved after 1 / decay epochs.
        power: exponent.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        decay: Annotated[float, Ge(0)] = 1.0,
        power: Annotated[float, Gt(0)] = 1.0,
    ) -> None:
        super().__init__(total_steps, steps_per_epoch)
        self.decay = decay
        self.power = power

    def shape(self, step: int) -> float:
        return float((1 + self.decay * step / self.steps_per_epoch) ** -self.power)
