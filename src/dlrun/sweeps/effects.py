"""What each setting of a sweep does: the mean of every value it had, over all values of the other settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dlrun.sweeps.leaderboard import Leaderboard, Row, shown
from dlrun.sweeps.significance import Cells, Sample, sample_of

MANY = 12  # values of a setting above which single rows are shown instead of means


@dataclass(frozen=True)
class Level:
    """One value of a setting: `sample` holds the mean over the other settings for each seed (or fold), `runs` how many runs
    went into it."""

    value: str
    sample: Sample
    runs: int

    @property
    def position(self) -> float | None:
        """The value as a number."""
        return as_number(self.value)


@dataclass(frozen=True)
class Effect:
    """A setting and its values, numbers in their order.

    Attributes:
        levels: means over the other settings; empty where the setting had too many values, as in a random search.
        lines: by the values of the other settings, the levels there.
        balanced: whether every value was tried with the same values of the other settings; if not, the means are over those
            that all have in common, or, where there are none, over all.
        points: value and mean of each row, for a setting with numbers.
    """

    setting: str
    levels: list[Level]
    lines: dict[str, list[Level]] = field(default_factory=dict)
    balanced: bool = True
    points: list[tuple[float, float]] = field(default_factory=list)

    @property
    def numeric(self) -> bool:
        return all(level.position is not None for level in self.levels)

    @property
    def scale(self) -> str:
        """Of the axis: `log` for numbers above 0 that span a factor of 10 or more, `symlog` if there is a 0 too."""
        values = [x for x, _ in self.points] or [x for level in self.levels if (x := level.position) is not None]
        above = [value for value in values if value > 0]
        if not above or max(above) < 10 * min(above) or min(values) < 0:
            return "linear"
        return "log" if len(above) == len(values) else "symlog"


def effects_of(board: Leaderboard) -> list[Effect]:
    """The effect of every setting that forms rows and has at least two values with runs that finished."""
    rows = [row for row in board.rows if row.cells]
    found = (_effect(name, rows) for name in board.names)
    return [effect for effect in found if effect]


def _effect(setting: str, rows: Sequence[Row]) -> Effect | None:
    """None for a setting of a single value."""
    groups: dict[str, dict[str, Row]] = {}  # value -> the other settings -> row
    for row in rows:
        others = ", ".join(f"{key}={shown(value)}" for key, value in row.settings.items() if key != setting)
        groups.setdefault(shown(row.settings[setting]), {})[others] = row
    if len(groups) < 2:
        return None
    numbers = [(as_number(shown(row.settings[setting])), row.mean) for row in rows]
    points = [(x, y) for x, y in numbers if x is not None and y is not None]
    if len(groups) > MANY:
        return Effect(setting, [], points=points) if len(points) == len(rows) else None
    every = [set(group) for group in groups.values()]
    common, union = set.intersection(*every), set.union(*every)
    kept = common or union
    values = sorted(groups, key=_order)
    levels = [_level(value, [row for others, row in groups[value].items() if others in kept]) for value in values]
    lines = {
        others: [_level(value, [groups[value][others]]) for value in values if others in groups[value]]
        for others in sorted(union)
    }
    return Effect(setting, levels, lines, common == union, points)


def _level(value: str, rows: Sequence[Row]) -> Level:
    """The mean over rows for each seed that all of them have."""
    shared = set.intersection(*({cell[:2] for cell in row.cells} for row in rows))
    cells: Cells = {
        (seed, fold, (index, others)): result
        for index, row in enumerate(rows)
        for (seed, fold, others), result in row.cells.items()
        if (seed, fold) in shared
    }
    return Level(value, sample_of(cells, max(row.folds for row in rows)), len(cells))


def as_number(value: Any) -> float | None:
    """A setting as a number, if it is one."""
    try:
        found = float(value)
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _order(value: str) -> tuple[bool, list[float], str]:
    """Numbers and lists of numbers by their values ([8] before [32] before [32,8]), then words."""
    numbers = [as_number(item) for item in value.strip("[]").split(",") if value != "[]"]
    known = [number for number in numbers if number is not None]
    return len(known) < len(numbers), known, value
