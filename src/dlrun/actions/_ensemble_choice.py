"""Which ensembles may read the test set: of those that compete for one problem, the best on validation data."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dlrun.actions._ensemble_report import HEADLINES, Measured
from dlrun.sweeps.records import HIGHER_IS_BETTER


def chosen(measured: Sequence[Measured]) -> tuple[list[Measured], str]:
    """Those of the row that is best on validation data among rows that share a test set, and a line that says so where there
    was a choice. Rows are compared on the splits that all of them have; without any, the test set stays sealed. The metric is
    the monitored one, of `val/loss` the negative log-likelihood, else the first headline."""
    rows: dict[str, list[Measured]] = {}
    for one in measured:
        rows.setdefault(json.dumps(one.group.settings, default=str), []).append(one)
    kept: list[Measured] = []
    told = ""
    for competing in _competing(list(rows.values())):
        common = set.intersection(*({one.problem for one in row} for row in competing))
        if not common:
            told = "the test set stays sealed: the rows have no split in common on which to choose the best"
            continue
        metric = _metric(competing)
        sign = -1 if HIGHER_IS_BETTER.get(metric) else 1
        best: list[Measured] = min(competing, key=lambda row: sign * _mean(row, common, metric))
        kept += best
        if len(competing) > 1:
            told = f"the test set is read for the best row by val/{metric} only; the others stay sealed"
    return kept, told


def _competing(rows: list[list[Measured]]) -> list[list[list[Measured]]]:
    """The rows in groups: those that share a problem, directly or through others."""
    found: list[list[list[Measured]]] = []
    for row in rows:
        problems = {one.problem for one in row}
        joined = [group for group in found if any(one.problem in problems for other in group for one in other)]
        found = [group for group in found if group not in joined] + [[*(r for group in joined for r in group), row]]
    return found


def _mean(row: Sequence[Measured], problems: set[str], metric: str) -> float:
    values = [one.together["val"][metric] for one in row if one.problem in problems]
    return sum(values) / len(values)


def _metric(rows: Sequence[Sequence[Measured]]) -> str:
    values = [one.together["val"] for row in rows for one in row]
    monitored = rows[0][0].group.members[0].monitor.partition("/")[2].replace("loss", "nll")
    names = (monitored, *HEADLINES, *values[0])
    return next(name for name in names if all(name in of_one for of_one in values))
