"""A trial under way: one run, or one for each repeat."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from dlrun.sweeps.jobs import Job, Outcome
from dlrun.sweeps.search.objective import Epochs, Objective, values_of


@dataclass
class Trial:
    """What is known of the runs of a trial, by their number within it.

    Args:
        own: Optuna's trial.
        values: of the parameters by name.
        waiting: runs that have not begun.
    """

    own: Any
    values: dict[str, Any]
    waiting: deque[int]
    running: set[int] = field(default_factory=set)
    jobs: dict[int, Job] = field(default_factory=dict)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    reports: dict[int, Epochs] = field(default_factory=dict)
    pruned: bool = False

    @property
    def number(self) -> int:
        return int(self.own.number)

    @property
    def failure(self) -> Outcome | None:
        """How the first run that failed ended."""
        return next((outcome for outcome in self.outcomes.values() if outcome.failed), None)

    @property
    def is_over(self) -> bool:
        return not self.running and not self.waiting

    @property
    def was_interrupted(self) -> bool:
        return any(outcome.status == "interrupted" for outcome in self.outcomes.values())

    def end(self, member: int, outcome: Outcome) -> None:
        """Takes the end of a run; those that have not begun never do once the trial is decided."""
        self.running.discard(member)
        self.outcomes[member] = outcome
        self.pruned |= outcome.status == "pruned"
        if outcome.failed or self.pruned:
            self.waiting.clear()

    def mean(self, epoch: int, metric: str) -> float | None:
        """Over the runs that have come to an epoch; None while one that is running has not."""
        if any(epoch not in self.reports.get(member, {}) for member in self.running):
            return None
        values = [epochs[epoch][metric] for epochs in self.reports.values() if metric in epochs.get(epoch, {})]
        return fmean(values) if values else None

    def objectives(self, objective: Objective) -> list[float]:
        """The means over the runs, all of which have finished. Raises LookupError as `values_of` does."""
        each = [
            values_of(objective, self.jobs[member].folder, outcome.value, self.reports.get(member, {}))
            for member, outcome in self.outcomes.items()
        ]
        return [fmean(values) for values in zip(*each, strict=True)]
