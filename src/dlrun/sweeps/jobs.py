"""The jobs of a sweep: what each one is, how it ended, and where the next one comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from dlrun import rundir

WITHOUT_EFFECT = ("callbacks", "action")
"""Groups of a configuration that change no number of a run."""

DONE = ("finished", "pruned")
"""Statuses of a run that gave what it was to give; the others (`failed`, `diverged`, `killed`, `timeout`) are failures."""


@dataclass(frozen=True)
class Job:
    """One run of a sweep, as it was submitted.

    Attributes:
        number: within the sweep, from 0; names the folder unless `hydra.sweep.subdir` says otherwise.
        overrides: the words that tell it from the others of its sweep, and those they share.
        config: the resolved configuration as plain values. It is what the job runs, whatever is edited meanwhile.
        folder: of the run.
        id: hash of what of the configuration affects the results.
        problem: why the configuration could not be resolved; such a job fails at once.
    """

    number: int
    overrides: list[str]
    config: dict[str, Any]
    folder: Path
    id: str
    problem: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        status: finished, pruned, failed, diverged, killed, timeout or interrupted.
        value: the best monitored value of a run that finished; None otherwise.
        message: one line for what did not finish.
        epochs: that were trained, as far as known.
        seconds: that the job took.
        memory: MiB that the run took on its device at most; None where it is not known.
        facts: whatever else the launcher knows.
    """

    status: str
    value: float | None = None
    message: str = ""
    epochs: int = 0
    seconds: float = 0.0
    memory: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return self.status not in (*DONE, "interrupted")


class Source(Protocol):
    """Where a launcher gets its jobs from, one after the other, and whom it tells how they go.

    A grid knows all of them at the start; a search makes the next one from what the earlier ones gave. Called from one
    thread of the main process.
    """

    total: int
    """How many jobs there will be at most."""

    reports: bool
    """Whether jobs shall tell of every validation, and stop where `reported` says so."""

    def next(self) -> Job | None:
        """The next job, which the caller starts at once; None if there is none now: either all are given out, or the
        next one depends on a job that is still running."""

    def reported(self, job: Job, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Told of a validation: `metrics` by full name, such as `val/loss`. Whether the job shall be pruned."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Told of the end of a job that `next` gave."""


def job_id(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits that depend on what affects the results of a resolved configuration."""
    kept = {key: config[key] for key in rundir.SAVED if key in config and key not in WITHOUT_EFFECT}
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
