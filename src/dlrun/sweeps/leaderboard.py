"""The leaderboard of a sweep: runs that differ in nothing but the seed are one row with mean, spread and n."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError

SEED = "seed"


@dataclass
class Job:
    """One run of a sweep: its folder, settings (its overrides), status, best monitored value and test metrics."""

    folder: Path
    settings: dict[str, Any]
    status: str
    monitor: str
    value: float | None
    test: dict[str, float]


@dataclass
class Row:
    """Runs that share every setting but the seed."""

    settings: dict[str, Any]
    jobs: list[Job] = field(default_factory=list)

    @property
    def values(self) -> list[float]:
        return [job.value for job in self.jobs if job.status == "finished" and job.value is not None]

    @property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        return stdev(self.values) if len(self.values) > 1 else None


class Leaderboard:
    """Rows sorted by the monitored validation metric, best first; test metrics are shown for the first row alone.

    Args:
        folder: of the sweep. jobs: its runs.
    """

    def __init__(self, folder: Path, jobs: list[Job]) -> None:
        self.folder, self.jobs = folder, jobs
        self.monitor = next((job.monitor for job in jobs if job.monitor), "val/loss")
        self.varied = _varied(job.settings for job in jobs)
        rows: dict[str, Row] = {}
        for job in jobs:
            settings = {key: job.settings.get(key) for key in self.varied if key != SEED}
            rows.setdefault(json.dumps(settings, sort_keys=True, default=str), Row(settings)).jobs.append(job)
        sign = -1 if _higher_is_better(self.monitor) else 1
        self.rows = sorted(rows.values(), key=lambda r: math.inf if r.mean is None else sign * r.mean)

    @classmethod
    def read(cls, folder: Path) -> Leaderboard:
        """Reads every run below a sweep folder."""
        return cls(
            folder,
            [
                _read_job(path)
                for path in sorted(folder.iterdir(), key=_by_number)
                if (path / rundir.OVERRIDES).is_file()
            ],
        )

    @property
    def failed(self) -> int:
        return sum(job.status != "finished" for job in self.jobs)

    def print(self) -> None:
        """Prints the table to the terminal."""
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table(title=escape(f"{self.folder}: {len(self.jobs)} runs, {self.failed} failed"), title_justify="left")
        names = [key for key in self.varied if key != SEED]
        for name in names:
            table.add_column(escape(name))
        for name in (self.monitor, "std", "n", *(f"test/{name}" for name in self._test_names())):
            table.add_column(name, justify="right")
        table.add_column("status")
        for row in self.rows:
            tests = [self._test(row, name) for name in self._test_names()]
            cells = [escape(str(row.settings[name])) for name in names]
            numbers = [row.mean, row.std, len(row.values), *tests]
            table.add_row(*cells, *("-" if v is None else f"{v:.5g}" for v in numbers), _statuses(row))
        Console().print(table)

    def write_csv(self) -> None:
        """Writes leaderboard.csv (one line per run) into the sweep folder."""
        tests = sorted({name for job in self.jobs for name in job.test})
        table: list[list[Any]] = [["run", "status", *self.varied, self.monitor, *(f"test/{name}" for name in tests)]]
        for row in self.rows:
            for job in row.jobs:
                settings = [job.settings.get(key) for key in self.varied]
                shown = self._shown(row, job)
                table.append([job.folder.name, job.status, *settings, job.value, *(shown.get(name) for name in tests)])
        rundir.write_csv(self.folder / "leaderboard.csv", table)

    def _test_names(self) -> list[str]:
        shown = ("accuracy", "rmse", "nll", "squared_error")
        present = {name for job in self.jobs for name in job.test}
        return [name for name in shown if name in present][:2]

    def _test(self, row: Row, name: str) -> float | None:
        values = [test[name] for test in map(partial(self._shown, row), row.jobs) if name in test]
        return mean(values) if values else None

    def _shown(self, row: Row, job: Job) -> dict[str, float]:
        """The test metrics to show: the winner's only, lest somebody choose by them."""
        return job.test if row is self.rows[0] else {}


def _read_job(folder: Path) -> Job:
    results = rundir.read_results(folder) or {"status": "missing", "metrics": {}, "best": {}}
    try:
        config = rundir.read_config(folder, "sweep")
    except ConfigError:
        config = {}
    best = results.get("best") or {}
    monitor = config.get("trainer", {}).get("monitor", "")
    test = {k: v for k, v in results.get("metrics", {}).get("test", {}).items() if v is not None}
    words = [word.lstrip("+").partition("=") for word in rundir.read_overrides(folder)]
    return Job(folder, {key: value for key, _, value in words}, results["status"], monitor, best.get("value"), test)


def _varied(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The settings that differ between runs, in the order of the command line."""
    found = list(settings)
    keys = list(dict.fromkeys(key for s in found for key in s))
    return [key for key in keys if len({json.dumps(s.get(key), default=str) for s in found}) > 1]


def _higher_is_better(monitor: str) -> bool:
    from dlrun.metrics._collection import direction

    return direction(monitor.partition("/")[2] or monitor) == "max"


def _statuses(row: Row) -> str:
    counts = {status: sum(job.status == status for job in row.jobs) for status in {job.status for job in row.jobs}}
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else 1 << 30, path.name)
