"""Ctrl-C, SIGTERM and SIGUSR1 (SLURM's warning): the step in hand is finished and a checkpoint written before the run ends.

Exception
  Interrupted            a signal arrived and a checkpoint was written: exit code 130 or 143
KeyboardInterrupt
  InterruptedAtOnce      a second signal arrived: leave without another checkpoint, same exit codes
"""

from __future__ import annotations

import os
import signal
from typing import Any

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


def exit_code(number: int) -> int:
    """130 for SIGINT, 143 for SIGTERM and SIGUSR1, which a cluster sends for the same reason."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint was written. `code` is the exit code (130 or 143)."""

    def __init__(self, code: int, what: str = "interrupted") -> None:
        super().__init__(f"{what} (exit code {code})")
        self.code = code


class InterruptedAtOnce(KeyboardInterrupt):
    """A second signal arrived before the first was answered. `code` is the exit code (130 or 143)."""

    def __init__(self, code: int) -> None:
        super().__init__(f"interrupted at once (exit code {code})")
        self.code = code


class Signals:
    """While it is entered, the first SIGINT, SIGTERM or SIGUSR1 is only noted; the next one raises InterruptedAtOnce.

    Outside the main thread (a launcher with threads) the default behaviour stays.
    """

    def __init__(self) -> None:
        self.arrived = False  # asked for at every step, so no property
        self._number = 0
        self._previous: dict[int, Any] = {}

    @property
    def exit_code(self) -> int:
        """Of the signal that arrived."""
        assert self.arrived
        return exit_code(self._number)

    def __enter__(self) -> None:
        self._process = os.getpid()
        heard = [number for number in NUMBERS if signal.getsignal(number) != signal.SIG_IGN]  # as under nohup
        try:
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        except ValueError:
            self._previous = {}

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if kind is None and self._previous and self.arrived:  # too late for anybody here to act on
            signal.raise_signal(self._number)

    def _note(self, number: int, frame: Any) -> None:
        if os.getpid() != self._process:  # a forked worker that has just begun: its parent decides
            return
        if self.arrived:
            raise InterruptedAtOnce(exit_code(number))
        self.arrived, self._number = True, number
        if number == signal.SIGINT:  # written without Python's buffers, which the handler may have interrupted
            os.write(2, b"\ndlrun: stopping after this step, with a checkpoint; Ctrl-C once more leaves at once\n")
