"""The event file of a run, opened late: the first step does not wait for TensorBoard to be imported."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlrun.callbacks._events import EventWriter

FLUSH_EVERY_S = 5.0
FIRST_FLUSH_S = 1.0  # a first epoch shorter than this does not wait for imports


class LateEvents:
    """An `EventWriter` that is made when something is first written; until then nothing is imported and no file touched.
    What is logged waits in memory, which takes a step about a microsecond.

    Args:
        folder, state: as for `EventWriter`.
        begin: writes what a new file begins with; None: nothing.

    Raises ConfigError as `EventWriter` does, in all methods.
    """

    def __init__(
        self, folder: Path, state: Mapping[str, Any], begin: Callable[[EventWriter], None] | None = None
    ) -> None:
        self.folder, self.state, self.begin = folder, state, begin
        self.failed = False  # to open the file
        self._writer: EventWriter | None = None
        self._waiting: list[tuple[float, int, dict[str, float]]] = []  # (time, step, values)
        self._flushed = time.time() - FLUSH_EVERY_S + FIRST_FLUSH_S

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars as one event of now; written by the first call 5 s after the last flush, if by nothing before."""
        now = time.time()
        self._waiting.append((now, step, dict(values)))
        if not 0 <= now - self._flushed < FLUSH_EVERY_S:  # the clock may be set back
            self.flush()

    def writer(self) -> EventWriter:
        """The open file, with all in it that was logged so far."""
        writer = self._writer or self._open()
        for now, step, values in self._waiting:
            writer.scalars(values, step, now)
        self._waiting.clear()
        return writer

    def flush(self) -> None:
        """Hands everything written so far to the operating system."""
        self.writer().flush()
        self._flushed = time.time()

    def _open(self) -> EventWriter:
        from dlrun.callbacks._events import EventWriter

        self.failed = True
        self._writer = EventWriter(self.folder, self.state)
        self.failed = False
        begin, self.begin = self.begin, None  # which holds the untrained filters
        if begin:
            begin(self._writer)
        return self._writer
