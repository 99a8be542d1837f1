"""Warm worker processes: they import once, map the data once, and run the jobs of a sweep one after the other.

The main process imports no torch. A fork server (`warm_up`) imports it while the jobs are being composed; every worker is
forked from it, also the one that replaces a worker that was killed. Worker and main process talk over a pipe:

    main -> worker   (jobs, options)      what to run: one job, or several as one stacked model
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
import multiprocessing.connection
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from dlrun.registry import ConfigError
from dlrun.sweeps import submitted
from dlrun.sweeps.job import outcome_of, record
from dlrun.sweeps.jobs import Job, Outcome, Source
from dlrun.sweeps.sweep import Failed

WORKER = "dlrun.worker"
RESERVED_MIB = 1500.0  # of a device for every process: its CUDA context and kernels
MARGIN = 1.2  # of the measured peak: what the allocator holds besides
WORKER_BYTES = 3 << 29  # of main memory that a worker is taken to need
CLOSING_S = 60.0  # for the runs in hand to write their checkpoints
STILLBORN = 5  # workers in a row after which no other is tried
TRACE_S = 1.0  # for a hanging worker to write down where it hangs


@dataclass(frozen=True)
class Settings:
    """The settings of `hydra/launcher=dlrun`; `launcher.workers=4` on the command line means `hydra.launcher.workers=4`.

    Attributes:
        workers: processes that run jobs at once; auto: one for each core, or each CUDA device, or several on a device if they
            fit by the memory that was measured.
        threads: CPU threads of each; auto: the cores divided by the workers. `trainer.threads` beats it. Another number
            changes the last bits of the results.
        timeout: seconds after which a job is taken to hang and is ended; null: never.
        stack: train jobs that differ only in values as one stacked model; see docs/stacking.md.
        stack_size: members of a stacked model at most.
        fail_fast: end the sweep after the first run that fails.
    """

    workers: int | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"
    timeout: float | None = None
    stack: bool = False
    stack_size: int = 64
    fail_fast: bool = False


@dataclass
class _Worker:
    """A process, the pipe to it, and what it is at."""

    number: int
    process: Any
    pipe: Connection
    jobs: list[Job] = field(default_factory=list)  # in hand: none, one, or the members of a stacked model
    members: int = 0  # as they were given
    begun: bool = False
    since: float = 0.0  # when

    def job(self, number: int) -> Job | None:
        return next((job for job in self.jobs if job.number == number), None)


def warm_up() -> None:
    """Starts the fork server, which imports torch meanwhile."""
    context = _context()
    if isinstance(context, multiprocessing.context.ForkServerContext):
        context.set_forkserver_preload([WORKER])
        from multiprocessing import forkserver

        forkserver.ensure_running()


def _context() -> Any:
    return multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")


class Pool:
    """The workers of one sweep.

    Args:
        settings: how many workers, and so on.
        folder: of the sweep.
        observer: told of what happens; see `dlrun.sweeps.table`.
    """

    def __init__(self, settings: Settings, folder: Path, observer: Any) -> None:
        self.settings, self.folder, self.observer = settings, folder, observer
        self.workers: list[_Worker] = []
        self.waiting: deque[list[Job]] = deque()  # given out by the source, not begun
        self.devices = 0  # CUDA devices among which the workers are spread
        self.limit = 1  # workers at most; known once the first one has looked for devices
        self.threads = 1
        self.stillborn = 0  # workers in a row that died before they began a job

    def run(self, source: Source) -> None:
        """Runs the jobs of `source` until it has no more. Raises Failed after the first failure with `fail_fast=true`, and
        whatever interrupts it, after the runs in hand have written their checkpoints."""
        self.source = source
        try:
            self.waiting.extend(self._first())
            if self.waiting:
                self._start()
                self._decide(self.waiting[0][0].config.get("device", "auto"))
            while self._give_out():
                self._listen()
        except BaseException:
            self._stop()
            raise
        finally:
            self._close()

    # ---- giving out -----------------------------------------------------------------------------------------------

    def _give_out(self) -> bool:
        """Gives every idle worker something to do. Whether anything is running now."""
        while True:
            worker = next((worker for worker in self.workers if not worker.jobs), None)
            if worker is None and len(self.workers) >= self.limit:
                break
            jobs = self._next()
            if not jobs:
                break
            worker = worker or self._start()
            worker.jobs, worker.members, worker.begun, worker.since = jobs, len(jobs), False, time.monotonic()
            options = {"threads": self.threads, "reports": self.source.reports}
            with contextlib.suppress(OSError):  # it has died: its sentinel will tell
                worker.pipe.send((jobs, options))
        return self._busy()

    def _next(self) -> list[Job]:
        if self.waiting:
            return self.waiting.popleft()
        job = self.source.next()
        return [job] if job else []

    def _first(self) -> list[list[Job]]:
        """The first job, or all of them where some may be trained together."""
        if self.settings.stack and not self.source.reports:
            return self._groups()
        job = self.source.next()
        return [[job]] if job else []

    def _groups(self) -> list[list[Job]]:
        """All jobs of the source, those together that can be trained as one stacked model."""
        from dlrun.sweeps.stackable import groups

        jobs: list[Job] = []
        while job := self.source.next():
            jobs.append(job)
        found, reasons = groups(jobs)
        for line in reasons:
            self.observer.said(line)
        size = self.settings.stack_size
        return [group[n : n + size] for group in found for n in range(0, len(group), size)]

    def _busy(self) -> bool:
        return any(worker.jobs for worker in self.workers)

    # ---- workers --------------------------------------------------------------------------------------------------

    def _start(self) -> _Worker:
        """A new worker; its number is the smallest that is free, and says which device it has."""
        taken = {worker.number for worker in self.workers}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        ours, theirs = multiprocessing.Pipe()
        alive, lifeline = multiprocessing.Pipe(duplex=False)  # closed by the system when this process is gone
        device = number % self.devices if self.devices else None
        process = _context().Process(
            target=_enter,
            args=(theirs, alive, {"cwd": os.getcwd(), "environ": dict(os.environ), "device": device, "folder": self.folder}),
            name=f"dlrun.worker.{number}",
        )
        process.start()
        theirs.close()
        alive.close()
        process.lifeline = lifeline
        worker = _Worker(number, process, ours)
        self.workers.append(worker)
        return worker

    def _decide(self, device: str) -> None:
        """How many workers there shall be, with how many threads. `device`: as the jobs have it."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        wanted, threads = self.settings.workers, self.settings.threads
        self.devices = self._devices() if device in ("auto", "cuda") else 0
        if wanted != "auto":
            limit = wanted
        elif self.devices or device.startswith("cuda"):
            limit = max(1, self.devices)
        else:
            limit = min(cores // (1 if threads == "auto" else threads), _free_memory() // WORKER_BYTES)
        self.limit = max(1, min(limit, self.source.total))
        self.threads = max(1, cores // self.limit) if threads == "auto" else threads
        if self.devices:  # the first worker was started before it could be given one of them
            self._end(self.workers[0])

    def _devices(self) -> int:
        """The CUDA devices that jobs may be spread over, as the first worker sees them."""
        worker = self.workers[0]
        try:
            worker.pipe.send("devices")
            found = worker.pipe.recv()
        except (OSError, EOFError):
            return 0
        return int(found)

    def _grow(self, outcome: Outcome) -> None:
        """Packs several runs on a device, as many as fit by the measured peak of the one that ended."""
        if not self.devices or self.settings.workers != "auto" or outcome.memory is None:
            return
        total = outcome.facts.get("device_mib") or 0.0
        per_device = packed(outcome.memory, total, os.cpu_count() or 1, self.devices)
        self.limit = max(self.limit, min(per_device * self.devices, self.source.total))

    # ---- listening ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Waits for the next message, death or deadline."""
        busy = [worker for worker in self.workers if worker.jobs]
        ready = multiprocessing.connection.wait(
            [worker.pipe for worker in busy] + [worker.process.sentinel for worker in busy], self._patience(busy)
        )
        for worker in busy:
            if worker.pipe in ready and not self._read(worker):
                self._bury(worker)
            elif worker.process.sentinel in ready and worker.pipe not in ready:
                self._bury(worker)
            elif worker.jobs and time.monotonic() > self._deadline(worker):
                self._kill_late(worker)
        self.observer.tick()

    def _read(self, worker: _Worker) -> bool:
        """Takes all messages of a worker. False if it has died."""
        try:
            while worker.pipe.poll():
                self._take(worker, worker.pipe.recv())
        except (EOFError, OSError):
            return False
        return True

    def _take(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "begun":
            worker.begun, self.stillborn = True, 0
            if job := worker.job(rest[0]):
                self.observer.begun(job)
        elif kind == "report":
            number, epoch, metrics = rest
            job = worker.job(number)
            prune = job is not None and self.source.reported(job, epoch, metrics)
            with contextlib.suppress(OSError):
                worker.pipe.send(bool(prune))
        elif kind == "ended":
            number, outcome = rest
            if job := worker.job(number):
                worker.jobs.remove(job)
                self._ended(job, outcome)
        elif kind == "apart":
            self.observer.said(rest[0])
            self._again(worker)
        elif kind == "said":
            self.observer.said(rest[0])

    def _again(self, worker: _Worker) -> None:
        """Gives the jobs of a worker out again, each alone, before all others."""
        self.waiting.extendleft([job] for job in reversed(worker.jobs))
        worker.jobs = []

    def _ended(self, job: Job, outcome: Outcome) -> None:
        self.source.ended(job, outcome)
        self.observer.ended(job, outcome)
        self._grow(outcome)
        if outcome.failed and self.settings.fail_fast:
            raise Failed(f"run {job.number} failed: {outcome.message}")

    # ---- what goes wrong ------------------------------------------------------------------------------------------

    def _patience(self, busy: Sequence[_Worker]) -> float:
        """Seconds until the next deadline, or until the table is drawn again."""
        if self.settings.timeout is None:
            return 1.0
        now = time.monotonic()
        return min([1.0, *(max(0.0, self._deadline(worker) - now) for worker in busy)])

    def _deadline(self, worker: _Worker) -> float:
        """When a worker is taken to hang: a stacked model has the time of all its members."""
        return worker.since + (self.settings.timeout or float("inf")) * worker.members

    def _kill_late(self, worker: _Worker) -> None:
        """Ends a worker that hangs, after it has written down where."""
        process = worker.process
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGUSR2)  # faulthandler writes the traceback of every thread, whatever it hangs in
        process.join(TRACE_S)
        self._kill(worker)
        self._give_up(worker, "timeout", f"still running after launcher.timeout={self.settings.timeout:g} s")

    def _bury(self, worker: _Worker) -> None:
        """Records what a worker died of; another one takes its place."""
        worker.process.join()
        code = worker.process.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in {s.value for s in signal.Signals} else f"signal {-code}"
            why = " (the system may have run out of memory)" if name == "SIGKILL" else ""
            message = f"its process was killed by {name}{why}"
        else:
            message = f"its process ended with exit code {code}"
        if worker.members > 1 and worker.begun:
            self.observer.said(f"{_names(worker.jobs)}: {message}; now one by one")
            self._again(worker)
        elif not worker.begun:  # it had been asked to end, say, after its last job
            self.stillborn += 1
            if self.stillborn == STILLBORN:
                raise ConfigError(f"launcher: {STILLBORN} workers in a row did not begin: {message}; hydra/launcher=basic has none")
            self._again(worker)
        self._give_up(worker, "killed", message)

    def _give_up(self, worker: _Worker, status: str, message: str) -> None:
        """Records the jobs that a dead worker had in hand."""
        self._discard(worker)
        for job in worker.jobs:
            record(job, status, message)
            submitted.note(self.folder, job.number, status)
            self._ended(job, outcome_of(job, Outcome(status, None, message), time.monotonic() - worker.since))

    # ---- ending ---------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Asks the runs in hand for a checkpoint, and waits for them."""
        busy = [worker for worker in self.workers if worker.jobs]
        for worker in busy:
            worker.process.terminate()
        deadline = time.monotonic() + CLOSING_S
        while busy and time.monotonic() < deadline:
            for worker in list(busy):
                with contextlib.suppress(Exception):  # a signal may have cut a message in two
                    while worker.pipe.poll(0.02):  # so that it never waits for this process to read
                        message = worker.pipe.recv()
                        if message[0] == "report":
                            worker.pipe.send(False)
                if not worker.process.is_alive():
                    busy.remove(worker)

    def _close(self) -> None:
        for worker in list(self.workers):
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        """Lets an idle worker go; kills any other."""
        with contextlib.suppress(OSError):
            worker.pipe.send(None)
        if worker.jobs:
            self._kill(worker)
        self._discard(worker)

    def _kill(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()

    def _discard(self, worker: _Worker) -> None:
        worker.process.lifeline.close()
        worker.pipe.close()
        self.workers.remove(worker)


def packed(peak_mib: float, total_mib: float, cores: int, devices: int) -> int:
    """How many runs fit on a device of `total_mib` at once, of which each takes `peak_mib` of tensors: at least 1, and no
    more than there are cores for."""
    fit = int(total_mib // (peak_mib * MARGIN + RESERVED_MIB))
    return max(1, min(fit, cores // max(1, devices)))


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(f"#{job.number}" for job in jobs)


def _free_memory() -> int:
    """Bytes of main memory that are free, or easily made so."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return 1 << 62


def _enter(*args: Any) -> None:
    """The first function of a worker. It lies on a higher floor, which is why it is imported by name."""
    enter: Callable[..., None] = importlib.import_module(WORKER).main
    enter(*args)
