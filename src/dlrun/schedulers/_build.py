"""From a configuration node and the length of a run to a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


def build_scheduler(node: Mapping[str, Any], total_steps: int, steps_per_epoch: int) -> Scheduler:
    """The schedule of `node` for a run of `total_steps` updates, its warm-up included."""
    scheduler: Scheduler = SCHEDULERS.build(node, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    warmup_epochs = SCHEDULERS.build_common(node).warmup_epochs
    scheduler.warmup_steps = round(warmup_epochs * scheduler.steps_per_epoch)
    return scheduler
