"""Ctrl-C and SIGTERM: the step in hand is finished and a checkpoint written before the run ends.

Exception
  Interrupted    a signal arrived and a checkpoint was written: exit code 130 or 143
"""

from __future__ import annotations

import signal
from typing import Any


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint was written. `code` is the exit code (130 or 143)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted (exit code {code})")
        self.code = code


class Signals:
    """While it is entered, the first SIGINT or SIGTERM is only noted; a second one raises KeyboardInterrupt at once.

    Outside the main thread (a launcher with threads) the default behaviour stays.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def arrived(self) -> bool:
        return self._number is not None

    @property
    def exit_code(self) -> int:
        """128 + the signal's number: 130 for SIGINT, 143 for SIGTERM."""
        return 128 + (signal.SIGINT if self._number == signal.SIGINT else signal.SIGTERM)

    def __enter__(self) -> None:
        try:
            self._previous = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:
            self._previous = {}

    def __exit__(self, *error: Any) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, frame: Any) -> None:
        if self.arrived:
            raise KeyboardInterrupt
        self._number = number
