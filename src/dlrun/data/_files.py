"""Finding and reading what a user points at: paths, and plain tables of numbers."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch
from torch import Tensor

from dlrun.registry import ConfigError


def expand(given: str, key: str) -> Path:
    """A path as the user gave it, `~` replaced. Raises ConfigError blaming `key` for an empty one or an unknown home."""
    if not given.strip() or "\0" in given:
        raise ConfigError(f"{key}: got {given!r}; expected a path")
    try:
        return Path(given).expanduser()
    except RuntimeError:  # no such user, or neither HOME nor an entry of this user
        raise ConfigError(f"{key}: the home folder in '{given}' is unknown; write the whole path") from None


def find_path(given: str, root: Path, key: str) -> Path:
    """`given` from the current folder, else below the data root. Raises ConfigError naming both places."""
    path = expand(given, key)
    for place in (path, root / path):
        if os.path.exists(place):  # Path.exists raises for a name that is too long
            return place
    looked = [path.absolute()] if path.is_absolute() else [path.absolute(), root / path]
    raise ConfigError(f"{key}: no such file or folder: {' or '.join(str(p) for p in looked)}")


def read_text(path: Path) -> str:
    """A text file (UTF-8, with or without byte order mark). Raises ConfigError naming the file."""
    if path.exists() and not path.is_file():  # reading a pipe or a device may never end
        raise ConfigError(f"{path}: is {'a folder' if path.is_dir() else 'a pipe or a device'}; expected a text file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {error.start}); convert it first") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ConfigError(f"{path}: line {line}: holds a NUL byte, so it is damaged or not UTF-8 text")
    return text


def number(cell: str) -> float | None:
    """The finite number a cell holds (within float32), else None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 3.4e38 and "_" not in cell else None


def read_matrix(path: Path, columns: int, at_least: bool = False) -> Tensor:
    """A text table of finite numbers, (N, columns) float32; `at_least` allows more columns.

    Between the numbers: commas, semicolons or white space. First lines without any number are taken for a header.
    Raises ConfigError naming the line.
    """
    rows: list[list[float | None]] = []
    for count, line in enumerate(read_text(path).splitlines(), 1):
        cells = line.replace(",", " ").replace(";", " ").split()
        values = [number(cell) for cell in cells]
        if not cells or (not rows and all(v is None for v in values)):
            continue
        if None in values:
            raise ConfigError(f"{path}: line {count}: '{cells[values.index(None)]}' is not a finite number")
        if len(cells) < columns or (len(cells) > columns and not at_least):
            raise ConfigError(f"{path}: line {count}: has {len(cells)} numbers; expected {columns}")
        rows.append(values)
    if not rows:
        raise ConfigError(f"{path}: holds no rows of numbers")
    if len({len(row) for row in rows}) > 1:
        raise ConfigError(f"{path}: its lines differ in their number of columns")
    return torch.tensor(rows, dtype=torch.float64).float()
