"""A file that grows during a run, and that a resumed run continues where its checkpoint left it."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from dlrun.files import cannot_write, sync_folder
from dlrun.registry import ConfigError

BUFFERED = 1 << 16  # bytes
log = logging.getLogger("dlrun")


class GrowingFile:
    """Appends bytes to a file.

    Whatever a killed run wrote after its last checkpoint is cut off when the run is resumed, so that nothing stands in
    the file twice. If the file is deleted while it is open, the next checkpoint puts it back.

    Args:
        folder: of the run; made if need be, but not made again if it is deleted later.
        name: of the file, below `folder`.
        length: bytes to keep of an existing file; None starts afresh.

    Raises ConfigError, naming the file and the reason, here and in all methods, if it cannot be written. After that nothing
    more is tried, so that whoever closes the file does not hide the first error behind another.
    """

    def __init__(self, folder: Path, name: str, length: int | None = None) -> None:
        self.folder, self.path = folder, folder / name
        self._waiting = bytearray()
        self._failed = False
        self._length = length or 0
        with self._blaming():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # unbuffered: Python's own buffer would be written again, and fail again, when the file is closed
            self._file: IO[bytes] = open(self.path, "w+b" if length is None else "r+b", buffering=0)  # noqa: SIM115
            if length is not None:
                self._file.truncate(length)
                self._file.seek(0, os.SEEK_END)

    def write(self, data: bytes) -> None:
        self._waiting += data
        if len(self._waiting) >= BUFFERED:
            self.flush()

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        if self._failed or self._file.closed:
            return
        left = memoryview(bytes(self._waiting))
        self._waiting.clear()
        with self._blaming():
            while left:
                left = left[self._file.write(left) :]

    def saved_length(self) -> int:
        """The length once everything written is safe on the disk: what a checkpoint remembers."""
        if self._failed or self._file.closed:
            return self._length
        self.flush()
        with self._blaming():
            os.fsync(self._file.fileno())
            self._put_back()
            self._length = os.fstat(self._file.fileno()).st_size
        return self._length

    def close(self) -> None:
        """Closes the file once everything written is safe on the disk."""
        try:
            self.saved_length()
        finally:
            with contextlib.suppress(OSError):  # some file systems report a failed write once more
                self._file.close()

    def _put_back(self) -> None:
        """Writes the file anew if somebody deleted it; its content can still be read here."""
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                return
        if not self.folder.is_dir():
            raise FileNotFoundError
        self._file.seek(0)
        content = self._file.read()
        self.path.parent.mkdir(exist_ok=True)
        self._file.close()
        self._file = open(self.path, "w+b", buffering=0)  # noqa: SIM115 - open as long as the run
        left = memoryview(content)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())
        sync_folder(self.path.parent)
        log.warning("%s was deleted or replaced while the run went on; it was written again", self.path)

    @contextlib.contextmanager
    def _blaming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._failed = True
            raise ConfigError(cannot_write(self.path, error, self.folder)) from error


def continued(path: Path, length: int, whole: Callable[[bytes], int]) -> int | None:
    """How many bytes of a file to keep on resuming: the `length` that the checkpoint remembers, or fewer, with a warning, if
    the file was damaged since (by a power failure, say); None, with a warning, if it is gone.

    `whole`: of some content, the length of its undamaged beginning.
    """
    try:
        with open(path, "rb") as file:
            kept = whole(file.read(length))
    except FileNotFoundError:
        log.warning("%s is gone; what the run said in it before its last checkpoint is lost", path)
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path} ({error.strerror})") from error
    if kept < length:
        log.warning("%s is damaged; of %d bytes before the last checkpoint the first %d are kept", path, length, kept)
    return kept
