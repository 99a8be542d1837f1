"""How the columns of a table become numbers: input columns here, fitted once and kept for new files, and targets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dlrun.data._files import number
from dlrun.registry import ConfigError
from dlrun.spec import TargetKind, TargetSpec

Cells = Sequence["str | None"]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """An input column: numeric (`levels` is None), or categorical and one-hot over `levels` ("" stands for missing).

    `indicator` adds a 0/1 feature that says where a numeric value is missing; the value itself stays NaN.
    """

    name: str
    levels: tuple[str, ...] | None
    indicator: bool = False

    def feature_names(self) -> list[str]:
        if self.levels is not None:
            return [f"{self.name}={level or 'missing'}" for level in self.levels]
        return [self.name, f"{self.name} missing"] if self.indicator else [self.name]

    def encode(self, cells: Cells, where: str, lines: Sequence[int]) -> Tensor:
        """(N, len(feature_names())) float32. A level that is not known gives zeros and a warning."""
        if self.levels is None:
            values = numbers(cells, where, self.name, lines)
            return torch.stack([values, values.isnan().float()], 1) if self.indicator else values.unsqueeze(1)
        index = {level: i for i, level in enumerate(self.levels)}
        codes = [index.get(cell or "", -1) for cell in cells]
        if unknown := sorted({cell or "missing" for cell, code in zip(cells, codes, strict=True) if code < 0}):
            _log.warning(
                "%s: column '%s' was never %s in training; encoded as zeros", where, self.name, ", ".join(unknown)
            )
        return (torch.tensor(codes).unsqueeze(1) == torch.arange(len(self.levels))).float()


def fit_column(name: str, cells: Cells, categorical: bool | None, indicator: bool, where: str) -> Column:
    """Decides what a column is (`categorical` None: by its cells). Raises ConfigError where nearly all are numbers."""
    given = [cell for cell in cells if cell is not None]
    if not given:
        raise ConfigError(f"{where}: column '{name}' has no values; data.drop=[{name}]")
    words = [cell for cell in given if number(cell) is None]
    if categorical is None and words and len(words) * 10 <= len(given):
        raise ConfigError(
            f"{where}: column '{name}' holds numbers but also '{words[0]}'; add that to data.missing, "
            f"or the column to data.categorical"
        )
    if not (bool(words) if categorical is None else categorical):
        if len({number(cell) for cell in given}) == 1 and len(given) == len(cells) > 1:
            _log.warning("%s: column '%s' is '%s' in every row and tells nothing", where, name, given[0])
        return Column(name, None, indicator and len(given) < len(cells))
    levels = sort_levels(set(given)) + [""] * (len(given) < len(cells))
    if len(levels) > max(20, len(given) // 2):
        _log.warning(
            "%s: column '%s' has %d levels in %d rows; drop it with data.drop?", where, name, len(levels), len(cells)
        )
    return Column(name, tuple(levels))


def numbers(cells: Cells, where: str, name: str, lines: Sequence[int]) -> Tensor:
    """(N,) float32, NaN where missing. Raises ConfigError naming the line of a cell that is not a finite number."""
    values = [float("nan") if cell is None else number(cell) for cell in cells]
    if None in values:
        at = values.index(None)
        raise ConfigError(f"{where}: column '{name}', line {lines[at]}: '{cells[at]}' is not a finite number")
    return torch.tensor(values, dtype=torch.float64).float()


def sort_levels(levels: set[str]) -> list[str]:
    """By value if all are numbers, else by the alphabet."""
    by_value = all(number(level) is not None for level in levels)
    return sorted(levels, key=lambda level: (float(level), level)) if by_value else sorted(levels)


def guess_kind(columns: Sequence[Cells]) -> TargetKind:
    """One column: text is class (real where nearly all cells are numbers: the text is then a mistake, and refused as such);
    0/1 binary; -1/1 sign; whole numbers counting from 0 or 1, at most 10 values, class;
    other numbers real. Several: multi_hot if all are 0/1, else real."""
    found = [{value for cell in cells if (value := number(cell or "")) is not None} for cells in columns]
    if len(columns) > 1:
        return "multi_hot" if all(values <= {0, 1} for values in found) else "real"
    values = found[0]
    if words := sum(number(cell or "") is None for cell in columns[0]):
        return "class" if words * 10 > len(columns[0]) else "real"
    if values in ({0.0, 1.0}, {-1.0, 1.0}):
        return "binary" if 0.0 in values else "sign"
    counting = [set(range(first, first + len(values))) for first in (0, 1)]
    return "class" if len(values) <= 10 and values in counting else "real"


def encode_targets(
    columns: Sequence[Cells], names: tuple[str, ...], kind: TargetKind, where: str, lines: Sequence[int]
) -> tuple[Tensor, TargetSpec]:
    """Targets without missing cells -> tensor and spec. Raises ConfigError where they do not fit the kind."""
    if kind in ("class", "binary", "sign"):
        return _encode_labels(columns, names, kind, where)
    values = torch.stack([numbers(c, where, n, lines) for c, n in zip(columns, names, strict=True)], dim=1)
    allowed: dict[Any, Any] = {
        "multi_hot": ("0 or 1", (values == 0) | (values == 1)),
        "non_negative": (">= 0", values >= 0),
    }
    if kind in allowed and not allowed[kind][1].all():
        row, column = (~allowed[kind][1]).nonzero()[0].tolist()
        raise ConfigError(
            f"{where}: column '{names[column]}', line {lines[row]}: '{columns[column][row]}'; "
            f"a {kind} target must be {allowed[kind][0]}"
        )
    for name, column in zip(names, values.T, strict=True):
        if kind != "multi_hot" and len(column) > 1 and column.min() == column.max():
            _log.warning("%s: target '%s' is %g in every row", where, name, float(column[0]))
    return values, TargetSpec(kind, len(names), names)


def _encode_labels(
    columns: Sequence[Cells], names: tuple[str, ...], kind: Any, where: str
) -> tuple[Tensor, TargetSpec]:
    if len(columns) > 1:
        raise ConfigError(
            f"data.kind: {kind} takes one target column, not {len(columns)}; several: multi_hot, real, non_negative"
        )
    cells = [cell or "" for cell in columns[0]]
    levels = tuple(sort_levels(set(cells)))
    if len(levels) < 2 or (kind != "class" and len(levels) > 2):
        listed = ", ".join(levels[:10])
        raise ConfigError(
            f"{where}: target '{names[0]}' has {len(levels)} level{'s' * (len(levels) > 1)} ({listed}); {kind} needs "
            f"{'at least 2' if kind == 'class' else '2'}"
        )
    if len(levels) > max(20, len(cells) // 2):
        _log.warning(
            "%s: target '%s' has %d classes in %d rows; a number? data.kind=real",
            where,
            names[0],
            len(levels),
            len(cells),
        )
    codes = torch.tensor([levels.index(cell) for cell in cells])
    if kind == "class":
        return codes, TargetSpec("class", len(levels), levels)
    targets = codes.float().unsqueeze(1)
    return (targets if kind == "binary" else 2 * targets - 1), TargetSpec(kind, 1, levels)
