"""The metrics of ensembles beside those of their members, as tables and files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.actions._ensemble_members import Group
from dlrun.sweeps.leaderboard import figure, print_table, shown
from dlrun.sweeps.records import number

TABLE, FILE = "ensemble.csv", "ensemble.json"
SHOWN = 60  # lines in the terminal
HEADLINES = ("accuracy", "rmse", "nll", "nll_gaussian", "ece", "squared_error")


@dataclass(frozen=True)
class Measured:
    """The metrics of one ensemble.

    Attributes:
        group: which runs.
        problem: what they predict on which samples.
        alone: of each part of the data (val, test), the metrics of every member on its own.
        together: likewise of the ensemble.
    """

    group: Group
    problem: str
    alone: dict[str, list[dict[str, float]]]
    together: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Line:
    """One metric on one part of the data, of the ensembles of a row: one for each split. `member`: mean of the members, and its
    standard error over the splits, or, of a single split, the standard deviation of the members; `ensemble` likewise, without
    an error where there is one split."""

    settings: dict[str, Any]
    part: str
    metric: str
    member: tuple[float, float | None]
    ensemble: tuple[float, float | None]
    sizes: tuple[int, int]
    splits: int


def lines_of(measured: Sequence[Measured]) -> Iterator[Line]:
    """The rows of the table; splits in which a metric is undefined are left out of its means."""
    rows: dict[str, list[Measured]] = {}
    for one in measured:
        rows.setdefault(json.dumps(one.group.settings, default=str), []).append(one)
    for row in rows.values():
        counts = [len(one.group.members) for one in row]
        for part in row[0].together:
            for metric in dict.fromkeys(name for one in row for name in one.together[part]):
                alone = [_of_members(one, part, metric) for one in row]
                of_all = [one.together[part].get(metric) for one in row]
                pairs = [(a, value) for a, value in zip(alone, of_all, strict=True) if a and value is not None]
                if not pairs:
                    continue
                singles, ensembles = [_mean(a) for a, _ in pairs], [value for _, value in pairs]
                spread = _error(singles) if len(pairs) > 1 else _deviation(pairs[0][0])
                yield Line(
                    row[0].group.settings, part, metric, (_mean(singles), spread), (_mean(ensembles), _error(ensembles)),
                    (min(counts), max(counts)), len(pairs),
                )  # fmt: skip


def show(lines: Sequence[Line], title: str) -> None:
    """Prints the headline metrics."""
    names = list(dict.fromkeys(key for line in lines for key in line.settings))
    several = any(line.splits > 1 for line in lines)
    spread = "s.e." if several else "std"
    heading = [*names, "on", "metric", "one network", f"± {spread}", "ensemble", *(["± s.e."] if several else [])]
    heading += ["members", *(["splits"] if several else [])]
    rows = []
    for line in lines:
        if line.metric in HEADLINES:
            least, most = line.sizes
            cells = [*(shown(line.settings.get(name)) for name in names), line.part, line.metric]
            cells += [figure(line.member[0]), figure(line.member[1], 2), figure(line.ensemble[0])]
            cells += [figure(line.ensemble[1], 2)] if several else []
            cells += [str(most) if least == most else f"{least} to {most}", *([str(line.splits)] if several else [])]
            rows.append(cells)
    print_table(title, heading, rows[:SHOWN], left=range(len(names) + 2))
    if len(rows) > SHOWN:
        print(f"{len(rows) - SHOWN} more lines in {TABLE}")


def write_table(measured: Sequence[Measured], path: Path) -> None:
    """One line for each ensemble, part of the data and metric."""
    names = list(dict.fromkeys(key for one in measured for key in (*one.group.settings, *one.group.split)))
    table: list[list[Any]] = [[*names, "on", "metric", "members", "member_mean", "member_std", "ensemble"]]
    for one in measured:
        settings = {**one.group.settings, **one.group.split}
        for part, values in one.together.items():
            for metric, value in values.items():
                alone = _of_members(one, part, metric)
                told = [_mean(alone) if alone else None, _deviation(alone), value]
                table.append([*(settings.get(name) for name in names), part, metric, len(one.group.members), *told])
    rundir.write_csv(path, table, key="action.output")


def write_file(
    measured: Sequence[Measured], lines: Sequence[Line], notes: Sequence[str], over: Sequence[str], path: Path
) -> int:
    """All of it as JSON, and how often ensembles have read the test set by now, which it returns."""
    reads = reads_of(path) + any("test" in one.together for one in measured)
    ensembles = [
        {
            "settings": one.group.settings,
            "split": one.group.split,
            "runs": [str(member.folder) for member in one.group.members],
            "metrics": {
                part: {
                    name: {"ensemble": number(value), "members": [number(m.get(name)) for m in one.alone[part]]}
                    for name, value in values.items()
                }
                for part, values in one.together.items()
            },
        }
        for one in measured
    ]
    summary = [
        {
            "settings": line.settings, "on": line.part, "metric": line.metric, "splits": line.splits,
            "one_network": number(line.member[0]), "ensemble": number(line.ensemble[0]),
            **({"one_network_se": number(line.member[1]), "ensemble_se": number(line.ensemble[1])} if line.splits > 1
               else {"one_network_std": number(line.member[1])}),
        }
        for line in lines
    ]  # fmt: skip
    about = {
        "members_differ_in": list(over),
        "test_set": f"every member had read it once when it finished; read by this command {reads} times",
        "test_reads": reads,
        "left_out": list(notes),
    }
    rundir.write_json(path, {**about, "summary": summary, "ensembles": ensembles})
    return reads


def reads_of(path: Path) -> int:
    """How often the test set was read by ensembles, as far as the file of an earlier command tells."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("test_reads")
    except (OSError, ValueError, AttributeError, RecursionError):
        return 0
    return found if isinstance(found, int) else 0


def _of_members(one: Measured, part: str, metric: str) -> list[float]:
    return [values[metric] for values in one.alone[part] if metric in values]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(values: Sequence[float]) -> float | None:
    """Standard deviation with n - 1; None for a single value."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _error(values: Sequence[float]) -> float | None:
    """Standard error of the mean."""
    deviation = _deviation(values)
    return None if deviation is None else deviation / math.sqrt(len(values))
