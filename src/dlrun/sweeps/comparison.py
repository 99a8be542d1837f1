"""Rows of a leaderboard compared with the best of them, or with a chosen one."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dlrun.sweeps.leaderboard import Leaderboard, Row, cell_of
from dlrun.sweeps.records import Record
from dlrun.sweeps.significance import Difference, bootstrap, difference, holm, sample_of, unpaired
from dlrun.sweeps.verdict import BETTER, NONE_SHOWN, WORSE, verdict

OTHER_DATA = "not comparable (other data)"

_TREATMENT = (
    *(
        "root",
        "batch_size",
        "evaluation_batch_size",
        "val_fraction",
        "test_fraction",
        "split",
        "split_seed",
        "fold",
        "folds",
    ),
    *(
        "limit_train",
        "limit_val",
        "limit_test",
        "transform",
        "sampling",
        "normalize",
        "augmentation",
        "loader",
        "workers",
        "prefetch_factor",
        "cache",
    ),
)
"""Settings of `data` that leave the data themselves as they are; which samples are evaluated is told by the split's hash."""


@dataclass(frozen=True)
class Compared:
    """A row and how it differs from the reference (row minus reference).

    Attributes:
        found: None for the reference itself, and where the data differ.
        bootstrap: percentile interval of the mean difference, for the eye.
        adjusted: p after Holm.
        verdict: in words; empty for the reference.
    """

    row: Row
    found: Difference | None = None
    bootstrap: tuple[float, float] | None = None
    adjusted: float | None = None
    verdict: str = ""


class Comparison:
    """Every row of a leaderboard against one of them.

    The best row is chosen by the very values that are compared, so Holm then counts all pairs of rows among which it was
    the best; against a baseline named beforehand it counts the other rows.

    Args:
        board: its rows are compared in its metric, with its confidence.
        baseline: the row to compare with; None: the best.
        test: `t` or `sign_flip`.
    """

    def __init__(self, board: Leaderboard, baseline: Row | None = None, test: str = "t") -> None:
        self.board, self.test = board, test
        self.chosen = baseline is not None
        self.reference = baseline or next(row for row in board.rows if row.cells)
        self.alpha = 1 - board.confidence
        differ = any(key.partition(".")[0] in ("data", "experiment") for key in board.varied)
        self._data = {id(row): _data_of(row) if differ else {""} for row in board.rows}
        self._evaluated = {id(row): _evaluated(row, board.monitor) for row in board.rows}
        others = [row for row in board.rows if row is not self.reference and row.cells]
        found = {id(row): self._difference(row, self.reference) for row in others}
        adjusted = self._adjust(found)
        self.rows = [self._compared(row, found.get(id(row)), adjusted) for row in board.rows]

    def count(self, verdict: str) -> int:
        """How many rows have a verdict that begins so."""
        return sum(compared.verdict.startswith(verdict) for compared in self.rows)

    def summary(self) -> str:
        """The outcome in one line."""
        reference = f"{'baseline' if self.chosen else 'best'}: {self.reference.label}"
        if len(self.rows) < 2:
            return f"{self.reference.label}: one row, nothing to compare it with"
        short = sum(compared.verdict.startswith(("not enough", "no verdict")) for compared in self.rows)
        counts = {
            "better": self.count(BETTER),
            "worse": self.count(WORSE),
            "without a difference shown": self.count(NONE_SHOWN),
            "with too few runs to tell": short,
            "not comparable": self.count("not comparable"),
        }
        told = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        return f"{reference}; of the other rows {told or 'none has a run that finished'}"

    def notes(self) -> list[str]:
        """What to know about the runs before believing the table, a line each."""
        rows, found = self.board.rows, []
        for row in rows:
            if row.cells and (bad := len([job for job in row.jobs if job.status in ("diverged", "failed")])):
                found.append(
                    f"{row.label}: {bad} of {len(row.jobs)} runs failed or diverged and are left out of its mean"
                )
            if repeated := len([job for job in row.jobs if job.finished]) - len(row.cells):
                found.append(f"{row.label}: {repeated} runs repeat the seed of another and are left out")
        if any(compared.verdict == OTHER_DATA for compared in self.rows):
            found.append("rows of other data than the reference's are not compared with it")
        pairs = [compared.found for compared in self.rows if compared.found and compared.found.p is not None]
        if any(not pair.paired for pair in pairs):
            found.append(
                "rows without common seeds on the same split are compared unpaired (Welch's t), which shows less"
            )
        if any(pair.folds for pair in pairs):
            found.append("folds share training data: their t test is corrected for it (Nadeau and Bengio 2003)")
        if not pairs and len(self.rows) > 1:
            found.append("one run of each row gives no verdict; add seeds=5, say")
        unequal = {frozenset(cell[2] for cell in row.cells) for row in rows if row.cells and row.others}
        if len(unequal) > 1:
            found.append(
                f"rows differ in {', '.join(rows[0].others)}: means are over what each has, differences over common runs"
            )
        return found

    def _difference(self, a: Row, b: Row, brief: bool = False) -> Difference | None:
        """a - b; None where their data differ."""
        if not self._data[id(a)] & self._data[id(b)]:
            return None
        folds = max(a.folds, b.folds)
        confidence = self.board.confidence
        if self._same_samples(a, b):
            return difference(a.cells, b.cells, confidence=confidence, test=self.test, folds=folds, brief=brief)
        return unpaired(sample_of(a.cells, folds), sample_of(b.cells, folds), confidence)

    def _same_samples(self, a: Row, b: Row) -> bool:
        """Whether runs of the same seed and fold were evaluated on the same samples, as far as known."""
        mine, yours = self._evaluated[id(a)], self._evaluated[id(b)]
        return all(mine[cell] == yours[cell] for cell in mine.keys() & yours.keys() if mine[cell] and yours[cell])

    def _adjust(self, found: dict[int, Difference | None]) -> dict[int, tuple[float, int]]:
        """p after Holm, and the factor, of each comparison with the reference that has a p."""
        p = {key: pair.p for key, pair in found.items() if pair and pair.p is not None}
        keys: list[Any] = list(p)
        values = [p[key] for key in keys]
        if not self.chosen:
            rest = [row for row in self.board.rows if id(row) in p]
            pairs = (self._difference(a, b, brief=True) for a, b in itertools.combinations(rest, 2))
            values += [pair.p for pair in pairs if pair and pair.p is not None]
        return dict(zip(keys, holm(values), strict=False))

    def _compared(self, row: Row, found: Difference | None, adjusted: dict[int, tuple[float, int]]) -> Compared:
        if row is self.reference:
            return Compared(row)
        if not row.cells:
            return Compared(row, verdict="no run finished")
        if found is None:
            return Compared(row, verdict=OTHER_DATA)
        p, factor = adjusted.get(id(row), (None, 1))
        said = verdict(found, p, factor, self.alpha, self.board.higher_is_better)
        eye = bootstrap(row.cells, self.reference.cells, self.board.confidence) if found.paired else None
        return Compared(row, found, eye, p, said)


def _data_of(row: Row) -> set[str]:
    """What tells the data of a row from others."""
    jobs = [job for job in row.jobs if job.finished]
    return {_data(job) for job in jobs} or {_data(job) for job in row.jobs}


def _data(job: Record) -> str:
    data = job.config.get("data")
    own = {key: value for key, value in data.items() if key not in _TREATMENT} if isinstance(data, dict) else {}
    return json.dumps(own, sort_keys=True, default=str)


def _evaluated(row: Row, metric: str) -> dict[Any, str]:
    """The hash of the samples on which each run was evaluated, by seed and fold; empty where it is not known."""
    split = metric.partition("/")[0]
    return {cell_of(job, row.others): str(job.split_hashes.get(split, "")) for job in row.jobs if job.finished}


def row_of(board: Leaderboard, words: Sequence[str]) -> list[Row]:
    """The rows with these settings (`optimizer.lr=0.01`), or with the run of this number or folder."""
    wanted = [word.partition("=") for word in words]
    if len(wanted) == 1 and not wanted[0][1]:
        name = wanted[0][0]
        return [row for row in board.rows if any(name in (job.folder.name, str(job.folder)) for job in row.jobs)]
    pairs = {key.strip().lstrip("+"): value.strip() for key, _, value in wanted}
    return [row for row in board.rows if all(_same(row.settings.get(key), value) for key, value in pairs.items())]


def _same(value: Any, given: str) -> bool:
    """Whether a setting is what was typed: 1e-3 is 0.001."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    try:
        return text == given or float(text) == float(given)
    except ValueError:
        return False
