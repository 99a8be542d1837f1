"""The leaderboard: runs that differ in nothing but seed and fold are one row with mean, spread, interval and n. No torch."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.sweeps.jobs import DONE
from dlrun.sweeps.records import REPEATS, Record, higher_is_better, number, read_sweep
from dlrun.sweeps.significance import Sample, sample_of

Job = Record  # one run of a sweep
TABLE = "leaderboard.csv"
STOPPED = "interrupted"  # neither failed nor come to an end: stopped with its sweep
SHOWN = 30  # rows in the terminal; files hold all


@dataclass
class Row:
    """Runs that share every setting but seed and fold, or, on request, chosen settings only.

    Attributes:
        settings: what tells it from the other rows.
        jobs: its runs, in whatever state. others: settings that differ within the row, beside seed and fold.
    """

    settings: dict[str, Any]
    jobs: list[Record] = field(default_factory=list)
    others: tuple[str, ...] = ()

    @cached_property
    def cells(self) -> dict[tuple[Hashable, Hashable, Hashable], float]:
        """Values of the runs that finished, by seed, fold and other settings; of a run that was repeated the first."""
        found: dict[tuple[Hashable, Hashable, Hashable], float] = {}
        for job in self.jobs:
            if job.finished and job.value is not None:
                found.setdefault(cell_of(job, self.others), job.value)
        return found

    @cached_property
    def sample(self) -> Sample:
        """One value of each seed, or of each fold."""
        return sample_of(self.cells, self.folds)

    @property
    def folds(self) -> int:
        """How many the cross-validation has; 0 without runs on several of them."""
        several = len({fold for _, fold, _ in self.cells}) > 1
        return int(number(_plain(self.jobs[0].get("data.folds"))) or 0) if several else 0

    @property
    def values(self) -> list[float]:
        return list(self.cells.values())

    @property
    def mean(self) -> float | None:
        return self.sample.mean

    @property
    def std(self) -> float | None:
        return self.sample.std

    @property
    def label(self) -> str:
        """`optimizer.lr=0.01, model=mlp`"""
        return ", ".join(f"{key}={shown(value)}" for key, value in self.settings.items()) or "all runs"

    @property
    def size(self) -> str:
        """n, and what was counted if not seeds: `5`, `5 folds`, `5 folds x 3`."""
        seeds = len({seed for seed, _, _ in self.cells})
        if not self.sample.folds:
            return str(self.sample.n)
        return f"{self.sample.n} folds" + (f" x {seeds}" if seeds > 1 else "")

    @property
    def statuses(self) -> str:
        """`2 diverged, 3 finished`"""
        counts = Counter(job.status for job in self.jobs)
        return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))


class Leaderboard:
    """Rows sorted by the monitored validation metric, best first; test metrics are shown for the first row alone. Of runs with
    another monitor than the first one it takes the value in their own best epoch.

    Args:
        folder: of the sweep. jobs: its runs.
        by: the settings that form rows; None: all that differ but seed and fold.
        confidence: of the intervals.
    """

    def __init__(
        self, folder: Path, jobs: Sequence[Record], by: Sequence[str] | None = None, confidence: float = 0.95
    ) -> None:
        self.folder, self.confidence = folder, confidence
        self.monitor = next((job.monitor for job in jobs if job.monitor), "val/loss")
        self.jobs = [job if job.monitor in ("", self.monitor) else job.by(self.monitor) for job in jobs]
        self.varied = varied(job.settings for job in jobs)
        free = [key for key in self.varied if key not in REPEATS]
        self.names = list(free if by is None else by)
        others = tuple(key for key in free if key not in self.names)
        rows: dict[str, Row] = {}
        for job in self.jobs:
            settings = {key: job.settings.get(key) if by is None else job.get(key) for key in self.names}
            rows.setdefault(_key(settings), Row(settings, others=others)).jobs.append(job)
        self.higher_is_better = bool(higher_is_better(self.monitor, self.jobs))
        sign = -1 if self.higher_is_better else 1
        self.rows = sorted(rows.values(), key=lambda r: math.inf if r.mean is None else sign * r.mean)

    @classmethod
    def read(cls, folder: Path) -> Leaderboard:
        """Reads every run below a sweep folder."""
        return cls(folder, read_sweep(folder))

    @property
    def failed(self) -> int:
        return sum(job.status not in (*DONE, STOPPED) for job in self.jobs)

    def print(self, title: str | None = None, table_file: str = TABLE) -> None:
        """Prints the table to the terminal; of many rows the first, the others being in `table_file`."""
        stopped = sum(job.status == STOPPED for job in self.jobs)
        counts = f"{len(self.jobs)} runs, {self.failed} failed" + (f", {stopped} stopped" if stopped else "")
        title = title or f"{self.folder}: {counts}"
        tests = [f"test/{name}" for name in self._test_names()]
        told = [] if all(job.status == "finished" for job in self.jobs) else ["status"]
        heading = [*self.names, self.monitor, plus_minus(self.confidence), "std", "n", *tests, *told]
        rows = []
        for row in self.rows[:SHOWN]:
            settings = [shown(row.settings[name]) for name in self.names]
            half = half_width(row.sample.interval(self.confidence))
            numbers = [figure(row.mean), figure(half, 2), figure(row.std, 2), row.size]
            numbers += [figure(self._test(row, name)) for name in self._test_names()]
            rows.append([*settings, *numbers, *([row.statuses] if told else [])])
        print_table(title, heading, rows, left=[*range(len(self.names)), len(heading) - len(told)])
        if len(self.rows) > SHOWN:
            print(f"{len(self.rows) - SHOWN} more rows in {self.folder / table_file}")

    def write_csv(self) -> None:
        """Writes leaderboard.csv (one line per run) into the sweep folder."""
        tests = sorted({name for job in self.jobs for name in job.test})
        table: list[list[Any]] = [["run", "status", *self.varied, self.monitor, *(f"test/{name}" for name in tests)]]
        for row in self.rows:
            for job in row.jobs:
                settings = [job.settings.get(key) for key in self.varied]
                shown = self._shown(row, job)
                table.append([job.folder.name, job.status, *settings, job.value, *(shown.get(name) for name in tests)])
        rundir.write_csv(self.folder / TABLE, table)

    def _test_names(self) -> list[str]:
        shown = ("accuracy", "rmse", "nll", "squared_error")
        present = {name for job in self.jobs for name in job.test}
        return [name for name in shown if name in present][:2]

    def _test(self, row: Row, name: str) -> float | None:
        values = [test[name] for test in map(partial(self._shown, row), row.jobs) if name in test]
        return math.fsum(values) / len(values) if values else None

    def _shown(self, row: Row, job: Record) -> dict[str, float]:
        """The test metrics to show: the winner's only, lest somebody choose by them."""
        return job.test if row is self.rows[0] else {}


def cell_of(job: Record, others: Iterable[str] = ()) -> tuple[Hashable, Hashable, Hashable]:
    """What tells a run from the others of its row: seed, fold, and the values of `others`."""
    seed, fold = (_key(_plain(job.settings.get(key))) for key in REPEATS)
    return seed, fold, _key([job.settings.get(key) for key in others])


def varied(settings: Iterable[dict[str, Any]]) -> list[str]:
    """The settings that differ between runs, in the order of the command line."""
    found = list(settings)
    keys = list(dict.fromkeys(key for s in found for key in s))
    return [key for key in keys if len({_key(s.get(key)) for s in found}) > 1]


def figure(value: Any, digits: int = 4) -> str:
    """A number with so many digits; "-" for None."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return "-" if value is None else str(value)


def half_width(interval: tuple[float, float] | None) -> float | None:
    """What stands behind the plus-minus of a symmetric interval."""
    return None if interval is None else (interval[1] - interval[0]) / 2


def plus_minus(confidence: float) -> str:
    """`± (95 %)`"""
    return f"± ({100 * confidence:.4g} %)"


def print_table(title: str, heading: Sequence[str], rows: Iterable[Sequence[str]], left: Sequence[int]) -> None:
    """Prints a table, its columns but those in `left` to the right; long cells are continued on the next line."""
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for column, name in enumerate(heading):
        table.add_column(
            escape(name), justify="left" if column in left else "right", overflow="fold", min_width=min(len(name), 16)
        )
    for row in rows:
        table.add_row(*map(escape, row))
    console = Console()
    console.print(f"[bold]{escape(title)}[/bold]", highlight=False, soft_wrap=True)
    console.print(table)


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _plain(value: Any) -> Any:
    """A word of the command line as the value it stands for: the seed `7` of a sweep is the seed 7 of a saved run."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
