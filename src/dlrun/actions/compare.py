"""Compares the runs of a sweep, or any others, and says which differences can be trusted. Imports no torch."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt

from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.registry import ConfigError, did_you_mean
from dlrun.sweeps import report_table
from dlrun.sweeps.comparison import Comparison, row_of
from dlrun.sweeps.curves import Curve, curve_of
from dlrun.sweeps.effects import effects_of
from dlrun.sweeps.finding import runs_of, runs_of_sweep
from dlrun.sweeps.leaderboard import Leaderboard, Row
from dlrun.sweeps.records import REPEATS, Record, reported

PAGE, TABLE, CURVES = "compare.html", "compare.csv", "tensorboard"
CURVE_ROWS = 50  # rows whose curves are written for TensorBoard


@ACTIONS.register("compare")
class Compare(Action):
    """Shows runs grouped over seeds and folds, compares every row with the best one or with a baseline on common seeds, and
    shows the effect of each setting: `dlrun action=compare sweep=<folder>`.

    Writes compare.html, compare.csv and mean curves for TensorBoard into `<sweep>/compare`, or, for a list of runs, into
    `outputs/compare/<date>/<time>`.

    Args:
        runs: folders of runs or of sweeps to compare instead of one sweep; * and ? stand for any characters.
        metric: what to compare, in the best epoch of each run, such as val/accuracy; null: trainer.monitor.
        by: the settings that form rows; null: all that differ but seed and data.fold.
        baseline: the row to compare with, by its settings ('optimizer.lr=0.01') or the number of one of its runs; null: the
            best.
        confidence: of the intervals; differences are tested at 1 - confidence.
        test: which test decides on pairs: t (paired t) or sign_flip (exact permutation, which needs at least 6 seeds).
        output: the folder to write into; null: see above.
    """

    def __init__(
        self,
        *,
        runs: list[str] | str | None = None,
        metric: str | None = None,
        by: list[str] | str | None = None,
        baseline: list[str] | str | int | None = None,
        confidence: Annotated[float, Ge(0.5), Lt(1.0)] = 0.95,
        test: Literal["t", "sign_flip"] = "t",
        output: str | None = None,
    ) -> None:
        self.runs = [runs] if isinstance(runs, str) else runs
        self.metric, self.confidence, self.test, self.output = metric, confidence, test, output
        self.by = [by] if isinstance(by, str) else by
        self.baseline = None if baseline is None else _words(baseline)

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        sweep = config.get("sweep")
        records, where = self._find(sweep)
        metric = self._metric(records, f"sweep={sweep}" if sweep else "action.runs")
        names = self._names(records)
        board = Leaderboard(where, [record.by(metric) for record in records], names, self.confidence)
        board.monitor = metric
        if metric.startswith("test/"):  # the order is that of the validation metric
            chosen = [row.settings for row in Leaderboard(where, records, names, self.confidence).rows]
            board.rows.sort(key=lambda row: chosen.index(row.settings))
        if not any(row.cells for row in board.rows):
            raise ConfigError(
                f"action.metric: no run that finished tells {metric} of its best epoch (no metrics.jsonl)"
            )
        comparison = Comparison(board, self._row(board), self.test)
        self._report(comparison, records)
        return None

    def _find(self, sweep: str | None) -> tuple[list[Record], Path]:
        """The runs, and the folder to write into."""
        if sweep and self.runs:
            raise ConfigError("action.runs: not together with sweep=; list the folder of the sweep among the runs")
        if sweep:
            records, where = runs_of_sweep(sweep), Path(os.path.expanduser(sweep)) / "compare"
        elif self.runs:
            records = runs_of(self.runs)
            where = Path("outputs", "compare", datetime.now().strftime("%Y-%m-%d"), datetime.now().strftime("%H-%M-%S"))
        else:
            raise ConfigError("sweep: no folder given; expected sweep=<folder>, or action.runs=[folder,folder,...]")
        return records, Path(os.path.expanduser(self.output)) if self.output else where

    def _metric(self, records: Sequence[Record], key: str) -> str:
        """The metric to compare in. Raises ConfigError if no run finished, or none reports it."""
        finished = [record for record in records if record.status == "finished"]
        if not finished:
            raise ConfigError(f"{key}: none of {len(records)} runs finished ({_statuses(records)})")
        if self.metric is None:
            monitors = sorted({record.monitor for record in finished if record.monitor})
            if len(monitors) != 1:
                raise ConfigError(
                    f"action.metric: runs were monitored by {', '.join(monitors) or 'nothing'}; choose one"
                )
            return monitors[0]
        known = reported(finished)
        if self.metric not in known:
            near = (
                f"; did you mean 'val/{self.metric}'?"
                if f"val/{self.metric}" in known
                else did_you_mean(self.metric, known)
            )
            raise ConfigError(f"action.metric: no run reports '{self.metric}'; allowed: {', '.join(known)}{near}")
        return self.metric

    def _names(self, records: Sequence[Record]) -> list[str] | None:
        """Checked `by`. Raises ConfigError for a setting that no run has, or that repeats runs."""
        for name in self.by or ():
            if name in REPEATS:
                raise ConfigError(f"action.by: runs are repeated over {name}; it cannot form rows")
            if all(record.get(name) is None for record in records):
                known = list(dict.fromkeys(key for record in records for key in (*record.settings, *record.flat)))
                raise ConfigError(f"action.by: no run has a setting '{name}'{did_you_mean(name, known)}")
        return self.by

    def _row(self, board: Leaderboard) -> Row | None:
        """The baseline. Raises ConfigError unless it is one row, with a run that finished."""
        if self.baseline is None:
            return None
        rows, words = row_of(board, self.baseline), ", ".join(self.baseline)
        labels = "; ".join(row.label for row in board.rows[:8]) + ("; ..." if len(board.rows) > 8 else "")
        if len(rows) != 1:
            what = f"{len(rows)} rows have" if rows else "no row has"
            near = did_you_mean(words, [row.label for row in board.rows]) if not rows else ""
            raise ConfigError(f"action.baseline: {what} '{words}'; rows: {labels}{near}")
        if not rows[0].cells:
            raise ConfigError(f"action.baseline: no run of '{rows[0].label}' finished")
        return rows[0]

    def _report(self, comparison: Comparison, records: Sequence[Record]) -> None:
        """Prints, and writes the files."""
        from dlrun.sweeps.report_events import write_events
        from dlrun.sweeps.report_page import write_page

        board, effects = comparison.board, effects_of(comparison.board)
        notes = [*_states(board.jobs), *self._about_test(records), *comparison.notes()]
        try:
            board.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"action.output: cannot create '{board.folder}' ({error.strerror})") from error
        shown = board.monitor if not board.monitor.startswith("test/") else _monitor(records)
        curves = _curves(board.rows, shown)
        title = f"{len(records)} runs by {board.monitor}"
        board.print(title, TABLE)
        report_table.print_comparison(comparison, effects)
        write_page(comparison, effects, curves, notes, title, board.folder / PAGE)
        report_table.write_csv(comparison, board.folder / TABLE)
        every = [name for name in reported(records) if not name.startswith("test/")]
        write_events(board.folder / CURVES, [pair for name in every for pair in _curves(board.rows, name)])
        print(comparison.summary())
        for note in notes:
            print(f"note: {note}")
        print(f"page:    {_readable(board.folder / PAGE)}")
        print(f"table:   {_readable(board.folder / TABLE)}")
        print(f"curves:  tensorboard --logdir {_readable(board.folder / CURVES)}")

    def _about_test(self, records: Sequence[Record]) -> list[str]:
        if not (self.metric or "").startswith("test/"):
            return []
        return [
            f"{self.metric} is for a final report: choosing by it spoils it, so rows stand in the order of {_monitor(records)}"
        ]


def _words(baseline: list[str] | str | int) -> list[str]:
    """`a=1,b=2` as a list."""
    if isinstance(baseline, list):
        return baseline
    return [word.strip() for word in re.split(r",\s*(?=[\w.@/]+=)", str(baseline))]


def _curves(rows: Sequence[Row], metric: str) -> list[tuple[str, Curve]]:
    found = (curve_of(row, metric) for row in rows[:CURVE_ROWS])
    return [(metric, curve) for curve in found if curve]


def _monitor(records: Sequence[Record]) -> str:
    return next((record.monitor for record in records if record.monitor), "val/loss")


def _states(records: Sequence[Record]) -> list[str]:
    """A line if some runs did not finish with a number."""
    left = [record for record in records if not record.finished]
    bad = [record.folder.name for record in left if record.status == "finished"]
    told = [f"{len(left)} of {len(records)} runs are left out: {_statuses(left)}"] if left else []
    return told + ([f"runs that finished without a finite value: {', '.join(bad[:8])}"] if bad else [])


def _statuses(records: Sequence[Record]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(Counter(r.status for r in records).items()))


def _readable(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
