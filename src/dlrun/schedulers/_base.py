"""What a learning-rate schedule is: a factor on `optimizer.lr` that is a pure function of the step.

for step in range(total_steps):
    lr = optimizer.lr * scheduler.factor(step)      # warm-up included
    ... one update ...
    after each validation: scheduler.observe(metrics)      # only plateau schedules listen
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """Linear warm-up, available for every schedule.

    Args:
        warmup_epochs: the learning rate rises linearly over the updates of this many epochs (fractions allowed; 0: none).
    """

    warmup_epochs: Annotated[float, Ge(0)] = 0.0


class Scheduler:
    """Base of all schedules; subclasses give `shape`.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.

    Attributes:
        warmup_steps: set by the builder from the common `warmup_epochs`.
    """

    def __init__(self, total_steps: int, steps_per_epoch: int) -> None:
        self.total_steps = max(1, total_steps)
        self.steps_per_epoch = max(1, steps_per_epoch)
        self.warmup_steps = 0

    def factor(self, step: int) -> float:
        """The factor for update number `step`, counted from 0 over the whole run."""
        shape = self.shape(step)
        return shape * (step + 1) / (self.warmup_steps + 1) if step < self.warmup_steps else shape

    def shape(self, step: int) -> float:
        """The factor without warm-up."""
        raise NotImplementedError

    def observe(self, metrics: Mapping[str, float]) -> None:
        """Called after each validation with `{"val/loss": ..., "val/accuracy": ...}`."""

    def check_metrics(self, names: Sequence[str]) -> None:
        """Raises ConfigError, before training, if the schedule listens to what is not among `names` (`val/loss`, ...)."""

    def state_dict(self) -> dict[str, Any]:
        """What must be saved: nothing, unless the schedule listens to validation."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
