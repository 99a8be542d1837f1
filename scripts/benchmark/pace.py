"""Lets a training process go on epoch by epoch, in turns with others, and takes its time."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

QUIET_S, QUIET_TIMES, LONGEST_S = 0.01, 5, 3.0
TICKS = os.sysconf("SC_CLK_TCK")


class Pace:
    """The ends of an epoch as a contestant tells them:

        for each epoch
            epoch_start()      # the epoch before is reported; waits for the word to go on
            training pass
            train_end()
            validation pass, logging, checkpoint
            validated(loss, accuracy)

    `train` is the training pass alone, `epoch` goes from one epoch start to the next. Work that a process leaves to
    threads and workers beyond the end of its epoch would cost nobody anything while it waits, so the CPU seconds of it
    are added to `epoch`. Without another word to go on the process ends.

    Args:
        device: whose work must be done before a time is taken.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.cuda = device == "cuda"
        self.channel = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print goes elsewhere
        self.started: float | None = None
        self.trained: float | None = None
        self.metrics: dict[str, float] = {}

    def send(self, message: dict[str, Any]) -> None:
        """Tells the driver something."""
        self.channel.write(json.dumps(message) + "\n")
        self.channel.flush()

    def epoch_start(self) -> None:
        """An epoch begins; the one before has ended."""
        if self.started is None:
            self.send({"ready": True})
        else:
            self._report(self.started)
        if not sys.stdin.readline():
            os._exit(0)
        self.started, self.trained, self.metrics = time.perf_counter(), None, {}

    def train_end(self) -> None:
        """The training pass of the epoch is over."""
        self._synchronize()
        assert self.started is not None
        self.trained = time.perf_counter() - self.started

    def validated(self, loss: float, accuracy: float) -> None:
        """What the validation pass found."""
        self.metrics = {"loss": float(loss), "accuracy": float(accuracy)}

    def _report(self, started: float) -> None:
        self._synchronize()
        epoch = time.perf_counter() - started
        background = wait_until_quiet()
        assert self.trained is not None, "the contestant did not tell the end of its training pass"
        self.send({"train": self.trained, "epoch": epoch + background, "background": background, **self.metrics})

    def _synchronize(self) -> None:
        if self.cuda:
            import torch

            torch.cuda.synchronize()


def wait_until_quiet() -> float:
    """Waits until this process and its workers do nothing any more, 3 s at most. Returns the CPU seconds they took."""
    first = last = busy_seconds()
    end = time.perf_counter() + LONGEST_S
    quiet, now = 0, first
    while quiet < QUIET_TIMES and time.perf_counter() < end:  # a thread may wait for the disk in between
        time.sleep(QUIET_S)
        now = busy_seconds()
        quiet = quiet + 1 if now - last < QUIET_S / 10 else 0
        last = now
    return now - first


def busy_seconds() -> float:
    """CPU seconds of this process and of its children."""
    total = time.process_time()
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    for pid in children.read_text().split() if children.exists() else ():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        total += (int(fields[11]) + int(fields[12])) / TICKS  # utime and stime: fields 14 and 15 of proc(5)
    return total
