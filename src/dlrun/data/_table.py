"""Tables of text cells: reading one, and finding its columns."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dlrun.data._files import number, read_text
from dlrun.registry import ConfigError, did_you_mean

ColumnRef = str | int


@dataclass(frozen=True)
class Table:
    """Rows of stripped cells; `lines` are their line numbers in the file, `names` the header's or '0', '1', ..."""

    path: Path
    names: tuple[str, ...]
    has_header: bool
    rows: list[list[str]]
    lines: list[int]
    missing: frozenset[str]

    def column(self, index: int) -> list[str | None]:
        """The cells of a column, None where missing."""
        return [None if row[index] in self.missing else row[index] for row in self.rows]

    def keep(self, wanted: Sequence[bool]) -> Table:
        """The table with only the wanted rows."""
        rows = [row for row, keep in zip(self.rows, wanted, strict=True) if keep]
        lines = [line for line, keep in zip(self.lines, wanted, strict=True) if keep]
        return Table(self.path, self.names, self.has_header, rows, lines, self.missing)


def read_table(
    path: Path, *, header: Literal["auto"] | bool = "auto", delimiter: str = "auto", missing: Sequence[str] = ("",)
) -> Table:
    """Reads a delimited text file. Raises ConfigError naming file and line for one that is not a table.

    `header="auto"` takes the first line for a header when none of its cells is a number and no two are equal; two equal
    ones above numbers are a header with a mistake.
    """
    text = read_text(path)
    mark = _delimiter(text) if delimiter == "auto" else delimiter
    rows, lines = _cells(text, mark, path)
    if not rows:
        raise ConfigError(f"{path}: holds no rows")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(rows[0]):
            raise ConfigError(
                f"{path}: line {line} has {len(row)} cells and line {lines[0]} has {len(rows[0])} "
                f"(data.delimiter: {delimiter if delimiter != 'auto' else repr(mark) + ', found by itself'})"
            )
    first = rows[0]
    if header == "auto":
        header = _is_header(rows, missing)
    names = (
        tuple(cell or str(i) for i, cell in enumerate(first)) if header else tuple(str(i) for i in range(len(first)))
    )
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise ConfigError(f"{path}: column '{doubled[0]}' occurs {names.count(doubled[0])} times in the header")
    start = int(header)
    if not rows[start:]:
        raise ConfigError(f"{path}: holds a header but no rows")
    return Table(path, names, header, rows[start:], lines[start:], frozenset(missing))


def _is_header(rows: list[list[str]], missing: Sequence[str]) -> bool:
    """Whether the first line names the columns: words only, and no two equal unless numbers follow below."""
    first = rows[0]
    if any(number(cell) is not None for cell in first):
        return False
    if len(set(first)) == len(first):
        return True
    return len(rows) > 1 and not set(first) & set(missing) and any(number(cell) is not None for cell in rows[1])


def column_index(ref: ColumnRef, names: Sequence[str], key: str) -> int:
    """The index of a column given by name or by number (from 0; negative: from the end). Raises ConfigError."""
    if isinstance(ref, int) and -len(names) <= ref < len(names):
        return ref % len(names)
    if isinstance(ref, str) and ref in names:
        return list(names).index(ref)
    allowed = ", ".join(names) if len(names) <= 30 else f"{', '.join(names[:30])}, ... ({len(names)} columns)"
    raise ConfigError(f"{key}: no column {str(ref)!r}; columns: {allowed}{did_you_mean(str(ref), names)}")


def _cells(text: str, delimiter: str, path: Path) -> tuple[list[list[str]], list[int]]:
    """Stripped cells and line numbers of all lines that are not blank."""
    rows, lines = [], []
    source = io.StringIO(text, newline="")
    stream = (line.strip() + "\n" for line in source) if delimiter == " " else source
    try:
        reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True, strict=True)
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append(cells)
                lines.append(reader.line_num)
    except (csv.Error, TypeError) as error:  # TypeError: a delimiter that is not one character
        raise ConfigError(f"{path}: not a table delimited by {delimiter!r} ({error})") from None
    return rows, lines


def _delimiter(text: str) -> str:
    """Of comma, semicolon, tab and bar, the one that cuts the first 20 lines into most cells, as many in each; else space.

    A comma where nothing does, as in a table of one column.
    """
    sample = [line.strip(" ") for line in text.splitlines() if line.strip()][:20]

    def width(mark: str) -> int:
        try:
            counts = {len(row) for row in csv.reader(sample, delimiter=mark, skipinitialspace=True)}
        except csv.Error:  # such as a cell beyond the limit of 131,072 characters: reported when the rows are read
            return 1
        return counts.pop() if len(counts) == 1 else 1

    best = max((",", ";", "\t", "|"), key=width)  # the first of equals
    return " " if width(best) == 1 < width(" ") else best
