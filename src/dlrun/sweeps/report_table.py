"""A comparison as tables: in the terminal and as CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.sweeps.comparison import Compared, Comparison
from dlrun.sweeps.effects import Effect
from dlrun.sweeps.leaderboard import SHOWN, figure, half_width, plus_minus, print_table, shown
from dlrun.sweeps.significance import Difference

_NONE = Difference(0, False)


def print_comparison(comparison: Comparison, effects: Sequence[Effect]) -> None:
    """Prints how rows differ from the reference, and what each setting does."""
    board = comparison.board
    against = "the baseline" if comparison.chosen else "the best row"
    compared = [row for row in comparison.rows if row.verdict]
    if compared:
        title = f"{board.monitor}: difference to {against}, {comparison.reference.label}"
        numbers = ("difference", plus_minus(board.confidence), "p (Holm)", "effect", "pairs")
        heading = (*board.names, *numbers, "verdict")
        rows = [(*_settings(row), *_without_p(row), row.verdict) for row in compared[:SHOWN]]
        print_table(title, heading, rows, left=(*range(len(board.names)), len(heading) - 1))
    for effect in effects:
        if effect.levels and len(board.names) > 1:
            title = f"{effect.setting}: mean over {'the other settings' if effect.balanced else UNBALANCED}"
            columns = ("value", board.monitor, plus_minus(board.confidence), "n", "runs")
            print_table(title, columns, list(level_cells(effect, board.confidence)), left=(0,))


UNBALANCED = "those values of the other settings that all have in common, or all if there are none"


def level_cells(effect: Effect, confidence: float) -> Iterable[tuple[str, ...]]:
    """Value, mean, half of the interval, n and runs of each value of a setting, as text."""
    for level in effect.levels:
        sample = level.sample
        half = figure(half_width(sample.interval(confidence)), 2)
        yield level.value, figure(sample.mean), half, str(sample.n), str(level.runs)


def write_csv(comparison: Comparison, path: Path) -> None:
    """Writes one line for each row. Raises ConfigError if it cannot be written."""
    board = comparison.board
    heading = [*board.names, "metric", "mean", "std", "low", "high", "n", "statuses"]
    heading += ["difference", "difference_low", "difference_high", "bootstrap_low", "bootstrap_high", "effect", "pairs"]
    heading += ["paired", "test", "p", "p_holm", "p_sign_flip", "verdict"]
    lines: list[list[Any]] = [heading]
    for compared in comparison.rows:
        row, found = compared.row, compared.found or _NONE
        low, high = row.sample.interval(board.confidence) or (None, None)
        line = [*row.settings.values(), board.monitor, row.mean, row.std, low, high, row.size, row.statuses]
        line += [found.mean, found.low, found.high, *(compared.bootstrap or (None, None)), found.effect]
        line += [found.n if found.paired else None, found.paired if compared.found else None, found.test]
        lines.append([*line, found.p, compared.adjusted, found.signs, compared.verdict or "reference"])
    rundir.write_csv(path, lines)


def numbers_of(compared: Compared) -> tuple[str, ...]:
    """Difference, half of its interval, p, p after Holm, effect and pairs, as text."""
    found = compared.found or _NONE
    interval = None if found.low is None or found.high is None else (found.low, found.high)
    pairs = str(found.n) if found.paired else "unpaired" if found.p is not None else "-"
    effect = "-" if found.effect is None else f"{found.effect:.2f}"
    numbers = figure(found.mean), figure(half_width(interval), 2)
    return *numbers, chance(found.p), chance(compared.adjusted), effect, pairs


def _settings(compared: Compared) -> tuple[str, ...]:
    return tuple(shown(value) for value in compared.row.settings.values())


def _without_p(compared: Compared) -> tuple[str, ...]:
    numbers = numbers_of(compared)
    return *numbers[:2], *numbers[3:]


def chance(p: float | None) -> str:
    """A p value with two digits."""
    return "-" if p is None else "< 0.0001" if p < 1e-4 else f"{p:.2g}"
