"""The sweeper of dlrun: every combination of the values on the command line is a job."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.shell import readable
from dlrun.sweeps import submitted
from dlrun.sweeps import sweep as current
from dlrun.sweeps.compose import Composer, combinations
from dlrun.sweeps.job import ended, record
from dlrun.sweeps.jobs import Job
from dlrun.sweeps.launching import Batch
from dlrun.sweeps.manifest import PASSING

LARGE = 5000
"""Jobs beyond which a sweep is taken for a mistake unless `allow_large=true`."""


def sweep(words: Sequence[str], launcher: Any, context: Any, config: DictConfig, batch_size: int | None) -> None:
    """Composes, writes down and runs the jobs of a grid; with `dry_run=true` only shows them.

    Raises ConfigError for too many jobs and for a setting that one of them lacks, and what Hydra raises for other words that
    it cannot compose, before anything is run.
    """
    composer = Composer(context.config_loader, config, Path(str(config.hydra.sweep.dir)))
    count, given = combinations(composer.parse(words))
    if count > LARGE and config.get("allow_large") is not True and not submitted.read(composer.folder):
        raise ConfigError(f"-m: these values make {count:,} jobs; if that is meant, add allow_large=true")
    jobs = composer.jobs(given)
    if config.get("dry_run"):
        from dlrun.sweeps.dry_run import show

        show(composer.folder, current.frozen(jobs, composer.folder))
        return
    jobs = current.submit(jobs)
    todo = [job for job in jobs if not _is_done(job)]
    if not todo:
        return
    run = getattr(launcher, "run", None)
    if run:
        run(Batch(todo))
        return
    passing = [word for word in words if word.partition("=")[0].lstrip("+") in PASSING]
    for first, batch in _consecutive(todo, batch_size):
        try:
            launcher.launch([[*job.overrides, *passing] for job in batch], initial_job_idx=first)
        except Exception as error:  # of the launcher, not of a run: one of its processes was killed, say
            _give_up(batch, composer.folder, " ".join(str(error).split())[:300], error)


def _is_done(job: Job) -> bool:
    """Whether a job has nothing left to do, which is said."""
    if (outcome := ended(job)) is None:
        return False
    print(f"{readable(job.folder)}: {outcome.status} already", file=sys.stderr)
    return True


def _consecutive(jobs: Sequence[Job], size: int | None) -> list[tuple[int, list[Job]]]:
    """Batches of jobs with consecutive numbers, with the first number of each: Hydra's launchers count on from there."""
    batches: list[tuple[int, list[Job]]] = []
    for _, group in itertools.groupby(enumerate(jobs), lambda pair: pair[1].number - pair[0]):
        members = [job for _, job in group]
        step = size if size and size > 0 else len(members)
        batches += [(members[n].number, members[n : n + step]) for n in range(0, len(members), step)]
    return batches


def _give_up(jobs: Sequence[Job], folder: Path, message: str, error: Exception) -> None:
    """Records the jobs that one of Hydra's launchers had in hand when it broke down. Raises ConfigError if it had none."""
    states = submitted.states(folder)
    begun = [job for job in jobs if states.get(job.number) == "running"]
    if not begun:
        raise ConfigError(f"hydra/launcher: {message}") from error
    for job in begun:
        record(job, "killed", message)  # but for one that is still running
        if (rundir.read_results(job.folder) or {}).get("status") == "killed":
            submitted.note(folder, job.number, "killed")
    print(f"dlrun: hydra/launcher: {message}; the same command goes on with what is missing", file=sys.stderr)
