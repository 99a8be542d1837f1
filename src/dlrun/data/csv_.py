"""Any table in a text file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor

from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.data._columns import Column, encode_targets, fit_column, guess_kind
from dlrun.data._files import find_path
from dlrun.data._table import ColumnRef, Table, column_index, read_table
from dlrun.registry import ConfigError, did_you_mean
from dlrun.spec import TargetKind, TargetSpec

_log = logging.getLogger(__name__)


@DATASETS.register("csv")
class Csv(Source):
    """Any table: numeric and categorical columns, missing values, one or more target columns of any kind.

    Columns are named by the header, or by number from 0 (also -1 for the last). Categorical columns become one-hot over
    the levels found in the table; in a new file, a level never seen gives zeros and a warning. A missing category is a
    level of its own. A missing number stays NaN here; dlrun puts the training mean there, computed after the split.
    Rows without a target are left out, with a warning. Real targets stay in original units.

    Args:
        root: folder that holds the data sets, where a relative `path` is looked for too; given by dlrun.
        path: the file, from the current folder or below `data.root`.
        target: name or number of the target column, or a list of them.
        kind: what the target is. auto: text is class; 0/1 binary; -1/1 sign; whole numbers counting from 0 or 1 up to
            at most 10 values class; other numbers real; several columns multi_hot if all are 0/1, else real.
        header: whether the first line names the columns; auto: when none of its cells is a number and no two are equal.
        delimiter: the character between cells; auto finds comma, semicolon, tab, bar or space.
        missing: cells that mean there is no value.
        categorical: columns to treat as categories; auto: those that hold text.
        drop: columns to ignore.
        missing_indicator: add to each numeric column with missing values a 0/1 feature that says where.

    Shapes: inputs float32 (N, features), targets as the kind says.

    Raises:
        ConfigError: no such file or column, a cell that does not fit its column, targets that do not fit the kind.
    """

    def __init__(
        self,
        root: Path,
        *,
        path: str,
        target: ColumnRef | tuple[ColumnRef, ...],
        kind: Literal["auto", "class", "binary", "multi_hot", "real", "non_negative", "sign"] = "auto",
        header: Literal["auto"] | bool = "auto",
        delimiter: str = "auto",
        missing: tuple[str, ...] = ("", "?", "NA", "N/A", "NaN", "nan", "null"),
        categorical: Literal["auto"] | tuple[ColumnRef, ...] = "auto",
        drop: tuple[ColumnRef, ...] = (),
        missing_indicator: bool = False,
    ) -> None:
        self.root, self.path, self.kind, self.header = root, path, kind, header
        self.target = target if isinstance(target, tuple) else (target,)
        self.delimiter, self.missing, self.drop = delimiter, missing, drop
        self.categorical, self.missing_indicator = categorical, missing_indicator
        self.state: dict[str, Any] = {}

    def train(self) -> tuple[Samples, TargetSpec]:
        table = self._read(find_path(self.path, self.root, "data.path"), self.header)
        targets = [column_index(ref, table.names, "data.target") for ref in self.target]
        if len(set(targets)) < len(targets) or not targets:
            raise ConfigError(f"data.target: got {list(self.target)}; expected one column or several different ones")
        table = self._with_targets(table, targets)
        columns = self._fit(table, targets)
        cells = [table.column(i) for i in targets]
        kind = cast(TargetKind, guess_kind(cells) if self.kind == "auto" else self.kind)
        names = tuple(table.names[i] for i in targets)
        encoded, spec = encode_targets(cells, names, kind, str(table.path), table.lines)
        self.load_state_dict(
            {
                "header": table.has_header,
                "names": list(table.names),
                "targets": list(names),
                "columns": [[c.name, None if c.levels is None else list(c.levels), c.indicator] for c in columns],
            }
        )
        return Samples(self._encode(table), encoded), spec

    def read_inputs(self, path: Path) -> Tensor:
        """(N, features) float32 from a file of the same form.

        With a header, columns go by name: order and further columns do not matter, and targets need not be there.
        Without one, the file must have the columns of the training file, with or without the targets.
        """
        if not self.state:
            self.train()
        table = self._read(path, self.state["header"])
        if not self.state["header"]:
            with_targets = self.state["names"]
            without = [name for name in with_targets if name not in self.state["targets"]]
            match = {len(names): tuple(names) for names in (with_targets, without)}
            if len(table.names) not in match:
                raise ConfigError(
                    f"{path}: has {len(table.names)} columns; expected {' or '.join(map(str, sorted(match)))}"
                )
            table = Table(path, match[len(table.names)], False, table.rows, table.lines, table.missing)
        return self._encode(table)

    def state_dict(self) -> dict[str, object]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.state = dict(state)
        self.feature_names = tuple(name for column in self._columns() for name in column.feature_names())

    def _columns(self) -> list[Column]:
        return [Column(n, None if levels is None else tuple(levels), i) for n, levels, i in self.state["columns"]]

    def _read(self, path: Path, header: Literal["auto"] | bool) -> Table:
        return read_table(path, header=header, delimiter=self.delimiter, missing=self.missing)

    def _with_targets(self, table: Table, targets: list[int]) -> Table:
        cells = [table.column(i) for i in targets]
        known = [None not in row for row in zip(*cells, strict=True)]
        if not any(known):
            raise ConfigError(f"{table.path}: no row has a value of {', '.join(table.names[i] for i in targets)}")
        if not all(known):
            _log.warning(
                "%s: %d of %d rows have no target and are left out", table.path, known.count(False), len(known)
            )
        return table.keep(known)

    def _fit(self, table: Table, targets: list[int]) -> list[Column]:
        ignored = {*targets, *(column_index(ref, table.names, "data.drop") for ref in self.drop)}
        marked: set[int] | None = None
        if self.categorical != "auto":
            marked = {column_index(ref, table.names, "data.categorical") for ref in self.categorical}
        inputs = [i for i in range(len(table.names)) if i not in ignored]
        if not inputs:
            raise ConfigError(f"{table.path}: no columns are left for the inputs")
        return [
            fit_column(
                table.names[i],
                table.column(i),
                None if marked is None else i in marked,
                self.missing_indicator,
                str(table.path),
            )
            for i in inputs
        ]

    def _encode(self, table: Table) -> Tensor:
        blocks = []
        for column in self._columns():
            if column.name not in table.names:
                near = did_you_mean(column.name, table.names)
                raise ConfigError(f"{table.path}: no column '{column.name}'; it has: {', '.join(table.names)}{near}")
            cells = table.column(table.names.index(column.name))
            blocks.append(column.encode(cells, str(table.path), table.lines))
        return torch.cat(blocks, dim=1)
