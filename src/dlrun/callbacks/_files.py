"""A file that grows during a run, and that a resumed run continues where its checkpoint left it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


class GrowingFile:
    """Appends bytes to a file.

    Whatever a killed run wrote after its last checkpoint is cut off when the run is resumed, so that nothing stands in
    the file twice.

    Args:
        path: the file; its folder is created.
        length: bytes to keep of an existing file; None starts afresh.
    """

    def __init__(self, path: Path, length: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[bytes] = open(path, "wb" if length is None else "ab")  # noqa: SIM115 - open as long as the run
        if length is not None:
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)

    @staticmethod
    def holds(path: Path, length: int) -> bool:
        """Whether the file is there with at least `length` bytes."""
        return path.is_file() and path.stat().st_size >= length

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def saved_length(self) -> int:
        """The length once everything written is safe on the disk: what a checkpoint remembers."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
        return self.path.stat().st_size
