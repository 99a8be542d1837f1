"""The processes of scripts/soak.py: started by a fork, killed at a chosen moment."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from dlrun.actions.train import train

WAYS = ("moment", "saving", "saved")
"""At a random moment; when the temporary file of a save has appeared; when it has gone."""

WORKERS_LEAVE_S = 12.0  # worker processes look every 5 s whether their parent still lives


def start(config: dict[str, Any], folder: Path, seed: int, log: Path) -> int:
    """Forks a process that trains, or goes on training, in `folder`, with other global random numbers for each `seed`; returns
    its id, which is also that of its group."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setpgid(0, 0)
        file = open(log, "a", buffering=1)  # noqa: SIM115 - open as long as the process
        sys.stdout = sys.stderr = file
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        random.seed(seed)
        torch.manual_seed(seed)
        train(config, folder)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def is_saving(folder: Path) -> bool:
    try:
        return any(name.endswith(".tmp") for name in os.listdir(folder / "checkpoints"))
    except FileNotFoundError:
        return False


def kill(pid: int, folder: Path, way: str, draw: random.Random, duration: float) -> bool:
    """Kills a process in one of the WAYS; False if it ended before, in which case it is still to be waited for."""
    begin = time.monotonic()
    wait(pid, begin + draw.uniform(0, duration))
    end = begin + 4 * duration + 5
    if way != "moment":
        while not is_saving(folder) and time.monotonic() < end and not ended(pid):
            time.sleep(5e-5)
        if way == "saved":
            while is_saving(folder) and not ended(pid):
                pass
        time.sleep(draw.choice((0, draw.uniform(0, 3e-4), draw.uniform(0, 2e-3))))
    if ended(pid):
        return False
    os.kill(pid, signal.SIGKILL)
    how = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    if how is None or how.si_code != os.CLD_KILLED:  # it has just ended by itself
        return False
    os.waitpid(pid, 0)
    return True


def ended(pid: int) -> bool:
    """Whether a child has ended; it can still be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait(pid: int, until: float) -> None:
    while time.monotonic() < until and not ended(pid):
        time.sleep(min(0.005, max(0.0, until - time.monotonic())))


def group(number: int) -> list[int]:
    """The living processes of a process group: a run and its workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, own = path.read_text().rpartition(")")[2].split()[:3]
            found += [int(path.parent.name)] if int(own) == number and state not in "ZX" else []
    return found


def left_behind(groups: list[int]) -> int:
    """How many workers of killed runs do not leave by themselves."""
    end = time.monotonic() + WORKERS_LEAVE_S
    while (left := [pid for number in groups for pid in group(number)]) and time.monotonic() < end:
        time.sleep(0.1)
    return len(left)
