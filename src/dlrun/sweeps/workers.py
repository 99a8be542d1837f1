"""The worker processes of a sweep, from the side of the main process: starting one, talking to it, ending it.

The main process imports no torch. A fork server (`warm_up`) imports it while the jobs are being composed; every worker is
forked from it, also the one that replaces a worker that was killed. Where there is no fork, each worker imports for itself.
They talk over a pipe:

    main -> worker   (jobs, options)      what to run: one job, or several as one stacked model
    worker -> main   ("leaving",): its last job failed, another worker shall take its place
    worker -> main   ("begun", number), ("report", number, epoch, metrics), ("ended", number, outcome), ("said", line),
                     ("apart", line): these jobs cannot be trained as one model after all
    main -> worker   True or False        whether the job that reported shall be pruned

A worker ignores Ctrl-C, which a terminal sends to it as well: the main process asks it to stop by SIGTERM, whereupon the run
in hand writes a checkpoint. It ends at once when the main process is gone.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dlrun.sweeps.jobs import Job

MODULE = "dlrun.worker"
ENDING_S = 5.0  # for a worker that has closed its pipe
TRACE_S = 1.0  # for a hanging worker to write down where it hangs


def warm_up() -> None:
    """Starts the fork server, which imports torch meanwhile."""
    context = _context()
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload([MODULE])
        from multiprocessing import forkserver

        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited: Ctrl-C is the main process's
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _context() -> Any:
    return multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")


@dataclass
class Worker:
    """A process, the pipe to it, and what it is at.

    Attributes:
        number: the smallest that no other worker had when it was started.
        lifeline: closed by the system when this process is gone, whereupon the worker ends.
        jobs: in hand: none, one, or the members of a stacked model. members: as many as they were given.
        begun: whether it has said so. since: when it was given them, or ended the last of them.
    """

    number: int
    process: Any
    pipe: Connection
    lifeline: Connection
    jobs: list[Job] = field(default_factory=list)
    members: int = 0
    begun: bool = False
    since: float = 0.0

    @classmethod
    def start(cls, number: int, device: int | None, folder: Path) -> Worker:
        """A new one. `device`: the CUDA device that it sees; None: all. `folder`: of the sweep."""
        ours, theirs = multiprocessing.Pipe()
        alive, lifeline = multiprocessing.Pipe(duplex=False)
        about = {"cwd": os.getcwd(), "environ": dict(os.environ), "device": device, "folder": folder}
        process = _context().Process(target=_enter, args=(MODULE, theirs, alive, about), name=f"dlrun.worker.{number}")
        process.start()
        theirs.close()
        alive.close()
        return cls(number, process, ours, lifeline)

    def job(self, number: int) -> Job | None:
        """The one with this number, if it is in hand."""
        return next((job for job in self.jobs if job.number == number), None)

    def devices(self) -> int:
        """How many CUDA devices it sees, while it is idle."""
        self.send("devices")
        try:
            return int(self.pipe.recv())
        except (OSError, EOFError):
            return 0

    def send(self, message: Any) -> None:
        """Says something; to a worker that has died, nothing: its sentinel will tell."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)

    def end(self) -> None:
        """Lets an idle worker go; kills any other."""
        self.send(None)
        if self.jobs:
            self.kill()
        self.discard()

    def kill(self, trace: bool = False) -> None:
        """Ends the process at once; `trace`: after it has written down where it hangs."""
        if trace:
            with contextlib.suppress(OSError):
                os.kill(self.process.pid, signal.SIGUSR2)  # faulthandler writes every thread's, whatever it hangs in
            self.process.join(TRACE_S)
        self.process.kill()
        self.process.join()

    def discard(self) -> None:
        """Closes what leads to it."""
        self.lifeline.close()
        self.pipe.close()

    def cause_of_death(self) -> str:
        """In words, once it has ended, which it is about to."""
        self.process.join(ENDING_S)
        if self.process.is_alive():
            self.kill()
        code = self.process.exitcode
        if code is None or code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
        why = " (the system may have run out of memory)" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{why}"


def _enter(module: str, *args: Any) -> None:
    """The first function of a worker. What it runs lies on a higher floor, which is why it is imported by name."""
    main: Callable[..., None] = importlib.import_module(module).main
    main(*args)
