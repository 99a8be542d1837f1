"""Files that are there whole or not at all: temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from dlrun.files import cannot_write, remove_stale, sync_folder
from dlrun.registry import ConfigError


def write_text(path: Path, text: str) -> None:
    """Writes a text file of a run. Raises ConfigError, naming the file and the reason, if the disk is full or read-only or the
    run's folder is gone; what stood there before stays as it was."""
    with _blame(path):
        if (
            path.parent.name == ".hydra"
        ):  # the folder of the run itself is never made again: it was deleted for a reason
            path.parent.mkdir(exist_ok=True)
        with _whole(path) as file:
            file.write(text)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), indented, as by `write_text`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]], key: str = "") -> int:
    """Writes a table, the header being its first row, and returns the number of rows. Numbers stay numbers; text that a
    spreadsheet would run as a formula gets an apostrophe (see `safe_cell`). Raises ConfigError, blaming `key`, as `write_text`
    does."""
    count = 0
    with _whole(path, key, newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        for row in rows:  # may read data, whose errors are not about this file
            cells = [safe_cell(value) for value in row]
            with _blame(path, key):
                writer.writerow(cells)
            count += 1
    return count


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SIGNS = "=+-@\u2212"  # with the minus sign of mathematics


def safe_cell(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula.

    Text that begins with one of = + - @ (in any width, and after any white space or invisible characters) and is no number
    gets an apostrophe in front, and so does such a piece behind a semicolon, tab or line break: where decimals have commas,
    spreadsheets split lines at semicolons. Anything but text passes.
    """
    if not isinstance(value, str):
        return value
    pieces = re.split(r"([;\t\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+)", value)
    safe = "".join(piece if n % 2 else _safe_piece(piece) for n, piece in enumerate(pieces))
    return f"'{safe}" if value[:1] in ("\t", "\r", "\n") and not safe.startswith("'") else safe


def _safe_piece(text: str) -> str:
    start = next((c for c in text if not c.isspace() and unicodedata.category(c)[0] not in "CZ"), "")
    sign = unicodedata.normalize("NFKC", start)[:1]
    return f"'{text}" if sign and sign in _SIGNS and not _NUMBER.fullmatch(text) else text


@contextlib.contextmanager
def _whole(path: Path, key: str = "", **options: Any) -> Iterator[IO[str]]:
    """A temporary file, renamed to `path` once all of it is on the disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    remove_stale(path.parent, f".{glob.escape(path.name)}.*.tmp")
    with contextlib.ExitStack() as stack:
        with _blame(path, key):
            file = stack.enter_context(open(temporary, "w", encoding="utf-8", **options))
        try:
            yield file
            with _blame(path, key):
                file.flush()
                os.fsync(file.fileno())
                file.close()
                os.replace(temporary, path)
                sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                file.close()  # may try once more to write what the disk has no room for
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _blame(path: Path, key: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = path.parent.parent if path.parent.name == ".hydra" else path.parent
        message = cannot_write(path, error, folder)
        raise ConfigError(f"{key}: {message}" if key else message) from error
