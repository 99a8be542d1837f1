"""A search with a launcher that takes a batch of jobs at a time and gives back their values (basic, joblib, Ray, Submitit)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.sweeps.jobs import Job, Outcome
from dlrun.sweeps.search.source import Search

STATUSES = ("failed", "diverged", "pruned", "killed", "timeout")


def run_in_batches(search: Search, launch: Callable[[list[list[str]], int], Sequence[Any]], size: int) -> None:
    """Runs a search to its end.

    Args:
        search: without pruning: nobody listens to the runs.
        launch: Hydra's, with the words of jobs that are numbered from the second argument on; gives a `JobReturn` for each.
        size: jobs of a batch at most.
    """
    while True:
        jobs: list[Job] = []
        while len(jobs) < size and (job := search.next()):
            jobs.append(job)
        if not jobs:
            return
        for group in _consecutive(jobs):
            returned = launch([job.overrides for job in group], group[0].number)
            for job, result in zip(group, returned, strict=True):
                search.ended(job, _outcome(job, result))


def _consecutive(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs whose numbers follow each other: a launcher numbers those of a batch so."""
    group: list[Job] = []
    for job in jobs:
        if group and job.number != group[-1].number + 1:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def _outcome(job: Job, returned: Any) -> Outcome:
    """How a job ended, by the value that it gave back and what it wrote."""
    try:
        value = returned.return_value
    except Exception as error:  # the error of the job
        return Outcome("failed", None, " ".join(str(error).split()) or type(error).__name__)
    if isinstance(value, (int, float)):
        return Outcome("finished", float(value))
    results = rundir.read_results(job.folder if job.folder.is_dir() else Path(returned.working_dir or ".")) or {}
    status = results.get("status")
    message = str(results.get("message") or "the run gave no value")
    return Outcome(status if status in STATUSES else "failed", None, message)
