"""Runs contestants as processes that take turns: one epoch each, in a new random order each round, never two at once."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmark.workload import Workload

SCRIPTS = Path(__file__).parents[1]
Rounds = dict[str, list[dict[str, Any]]]


class Terminal:
    """A pseudo-terminal for the standard error of a process, so that what draws on terminals does so. Keeps the end."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self.kept: deque[str] = deque(maxlen=100)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # all who write have ended
            while piece := os.read(self._master, 65536):
                self.kept.append(piece.decode(errors="replace"))
        os.close(self._master)

    def close(self) -> str:
        """Call it when the process has ended. The last thing written."""
        os.close(self.slave)
        self._reader.join(timeout=5)
        return "".join(self.kept)


def environment(**more: str) -> dict[str, str]:
    """The environment of a measured process: this package can be imported, the terminal has a size."""
    path = os.pathsep.join([str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **more}


class Left(Exception):
    """A contestant that cannot take part, and why."""


class Process:
    """A contestant's process; call `ready` before its first turn."""

    def __init__(self, name: str, workload: Workload, folder: Path, module: str = "benchmark.contestant") -> None:
        self.name, self.terminal = name, Terminal()
        words = [name, json.dumps(workload.to_json()), str(folder)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.terminal.slave,
            text=True,
        )

    def ready(self) -> None:
        """Waits until it stands at its first epoch. Raises Left if it gets no further."""
        self._read()

    def turn(self) -> dict[str, Any]:
        """One epoch: seconds as `train` and `epoch`, validation `loss` and `accuracy`."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as the answer will say
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        message: dict[str, Any] = json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}
        if "error" in message:
            raise Left(f"{self.name} is left out: {message['error']}")
        return message

    def close(self) -> str:
        """Ends the process. What it wrote last."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return self.terminal.close()


def take_turns(names: Sequence[str], workload: Workload, rounds: int, seed: int = 0) -> tuple[Rounds, list[str]]:
    """The turns of each contestant, the first round (a warm-up) left out, and one line for each that cannot take part.

    Args:
        names: of `contestant.CONTESTANTS` and `contestant.DLRUN`.
        workload: `epochs` is replaced by as many as needed.
        rounds: that count.
        seed: of the order within a round.
    """
    workload = Workload.from_json({**workload.to_json(), "epochs": rounds + 2})
    processes: dict[str, Process] = {}
    found: Rounds = {}
    left: list[str] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder, contextlib.ExitStack() as stack:
        for number, name in enumerate(names):
            (own := Path(folder) / str(number)).mkdir()
            processes[name] = Process(name, workload, own)
            stack.callback(processes[name].close)
        for name in names:
            try:
                processes[name].ready()
            except Left as error:
                left.append(str(error))
                del processes[name]
        chooser = random.Random(seed)
        for number in range(rounds + 1):
            for name in chooser.sample(list(processes), len(processes)):
                try:
                    turn = processes[name].turn()
                except Left as error:
                    left.append(str(error))
                    del processes[name]
                    found.pop(name, None)
                    continue
                if number:
                    found.setdefault(name, []).append(turn)
    return {name: found[name] for name in names if name in found}, left
