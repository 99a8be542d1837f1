"""The launcher of dlrun, called by Hydra: its settings checked, its jobs run in a pool of warm workers, a table drawn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from annotated_types import Gt
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from dlrun.registry import validate
from dlrun.sweeps import sweep
from dlrun.sweeps.capacity import Settings
from dlrun.sweeps.compose import Composer
from dlrun.sweeps.jobs import Job, Outcome, Source
from dlrun.sweeps.pool import Pool
from dlrun.sweeps.records import higher_is_better
from dlrun.sweeps.table import Table

KINDS: dict[str, Any] = {
    "workers": Annotated[int, Gt(0)] | Literal["auto"],
    "threads": Annotated[int, Gt(0)] | Literal["auto"],
    "timeout": Annotated[float, Gt(0)] | None,
    "stack": bool,
    "stack_size": Annotated[int, Gt(1)],
}


def run(source: Source, settings: Mapping[str, Any], config: DictConfig) -> None:
    """Runs the jobs of `source`; with `fail_fast=true` until the first one fails."""
    values = checked(settings)
    folder = Path(str(config.hydra.sweep.dir))
    fail_fast = validate(config.get("fail_fast"), bool, "fail_fast")
    sweep.work_begins()
    # for the leaderboard's intervals; now, while the fork server still imports torch on one of the cores
    threading.Thread(target=import_module, args=("scipy.special",), name="dlrun.import").start()
    table = Table(source.total, _varying(source), lambda monitor: higher_is_better(monitor, []))
    try:
        Pool(Settings(**values, fail_fast=fail_fast), folder, table).run(source)
    except sweep.Failed as error:
        table.said(f"dlrun: {error}; the others are not begun (fail_fast=true)")
    finally:
        table.close()


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the launcher as plain values. Raises ConfigError for a wrong one."""
    plain = {key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in settings.items()}
    return {key: validate(plain[key], kind, f"launcher.{key}") for key, kind in KINDS.items()}


def launch(
    words: Sequence[Sequence[str]], first: int, settings: Mapping[str, Any], context: Any, config: DictConfig
) -> list[JobReturn]:
    """A batch of jobs that another sweeper has made; each return value is the best monitored value, or None."""
    composer = Composer(context.config_loader, config, Path(str(config.hydra.sweep.dir)))
    jobs = sweep.submit(composer.jobs(map(list, words), first))
    batch = Batch(jobs)
    run(batch, settings, config)
    returns = []
    for job in jobs:
        done = JobReturn()
        done.overrides, done.cfg = job.overrides, OmegaConf.create(job.config)
        done.status = JobStatus.COMPLETED  # a failed one has its place in the leaderboard; Hydra would stop
        done.return_value = batch.outcomes[job.number].value if job.number in batch.outcomes else None
        returns.append(done)
    return returns


class Batch:
    """Jobs that are known at the start, as a `Source`."""

    reports = False

    def __init__(self, jobs: Sequence[Job], tell: Callable[[Job, Outcome], None] | None = None) -> None:
        self.jobs, self.total, self.outcomes, self.tell = list(jobs), len(jobs), dict[int, Outcome](), tell
        self._next = 0

    def next(self) -> Job | None:
        """The next one that was not given yet."""
        if self._next == len(self.jobs):
            return None
        self._next += 1
        return self.jobs[self._next - 1]

    def reported(self, job: Job, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Never pruned."""
        return False

    def ended(self, job: Job, outcome: Outcome) -> None:
        """Keeps the outcome."""
        self.outcomes[job.number] = outcome


def _varying(source: Source) -> Callable[[Job], list[str]]:
    """Which words of a job to show: those that not all jobs share, as far as all are known."""
    if shown := getattr(source, "shown", None):
        return cast(Callable[[Job], list[str]], shown)
    jobs: list[Job] = getattr(source, "jobs", [])
    shared = set(jobs[0].overrides).intersection(*(job.overrides for job in jobs[1:])) if len(jobs) > 1 else set()
    return lambda job: [word for word in job.overrides if word not in shared] or job.overrides[-1:]
