"""Which ensembles may read the test set: of those that compete for one problem, the best on validation data."""

from __future__ import annotations

import json
from collections.abc import Sequence

from dlrun.actions._ensemble_report import HEADLINES, Measured
from dlrun.sweeps.records import HIGHER_IS_BETTER


def chosen(measured: Sequence[Measured]) -> tuple[list[Measured], str]:
    """Those of the row that is best on validation data among rows with the same test sets, and a line that says so where there
    was a choice. The metric is the monitored one, of `val/loss` the negative log-likelihood, else the first headline."""
    rows: dict[str, list[Measured]] = {}
    for one in measured:
        rows.setdefault(json.dumps(one.group.settings, default=str), []).append(one)
    problems: dict[str, list[list[Measured]]] = {}
    for row in rows.values():
        problems.setdefault(json.dumps(sorted(one.problem for one in row)), []).append(row)
    kept, told = [], ""
    for competing in problems.values():
        metric = _metric(competing)
        sign = -1 if HIGHER_IS_BETTER.get(metric) else 1
        best = min(competing, key=lambda row: sign * sum(one.together["val"][metric] for one in row) / len(row))
        kept += best
        if len(competing) > 1:
            told = f"the test set is read for the best row by val/{metric} only; the others stay sealed"
    return kept, told


def _metric(rows: Sequence[Sequence[Measured]]) -> str:
    values = [one.together["val"] for row in rows for one in row]
    monitored = rows[0][0].group.members[0].monitor.partition("/")[2].replace("loss", "nll")
    names = (monitored, *HEADLINES, *values[0])
    return next(name for name in names if all(name in of_one for of_one in values))
