"""Mean curves of rows: a metric after each epoch, over the runs of a row."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dlrun.sweeps.leaderboard import Row
from dlrun.sweeps.records import Record, number


@dataclass(frozen=True)
class Curve:
    """The mean of a metric over the runs of a row, one standard deviation around it, and how many runs it is of.

    Epochs end where the first of the runs ended, since a mean of those left over would be of other runs.
    """

    label: str
    epochs: list[int]
    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    n: int


def curve_of(row: Row, metric: str) -> Curve | None:
    """The curve of `val/loss` or `train/accuracy`; None where no run that finished wrote it (callbacks=none)."""
    found = [_points(job, metric) for job in row.jobs if job.finished]
    runs = [points for points in found if points]
    if not runs:
        return None
    epochs = sorted(set.intersection(*map(set, runs)))
    columns = [[run[epoch][1] for run in runs] for epoch in epochs]
    mean = [math.fsum(column) / len(column) for column in columns]
    std = [_std(column, middle) for column, middle in zip(columns, mean, strict=True)]
    return Curve(
        row.label,
        epochs,
        [runs[0][epoch][0] for epoch in epochs],
        mean,
        [middle - spread for middle, spread in zip(mean, std, strict=True)],
        [middle + spread for middle, spread in zip(mean, std, strict=True)],
        len(runs),
    )


def _points(job: Record, metric: str) -> dict[int, tuple[int, float]]:
    """Epoch -> (step, value)."""
    split, _, name = metric.partition("/")
    found = {}
    for line in job.history:
        value, epoch, step = number(line.get(name)), line.get("epoch"), line.get("step")
        if line.get("split") == split and value is not None and isinstance(epoch, int) and isinstance(step, int):
            found[epoch] = (step, value)
    return found


def _std(values: list[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)) if len(values) > 1 else 0.0
