"""Warm worker processes: they import once, map the data once, and run the jobs of a sweep one after the other."""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dlrun.registry import ConfigError
from dlrun.sweeps import submitted
from dlrun.sweeps.capacity import WORKER_BYTES, Settings, cores, free_memory, packed
from dlrun.sweeps.job import outcome_of, record
from dlrun.sweeps.jobs import Job, Outcome, Source
from dlrun.sweeps.sweep import Failed
from dlrun.sweeps.workers import Worker

CLOSING_S = 60.0  # for the runs in hand to write their checkpoints
STILLBORN = 5  # workers in a row after which no other is tried


class Pool:
    """The workers of one sweep.

    Args:
        settings: how many workers, and so on.
        folder: of the sweep.
        observer: told of what happens; see `dlrun.sweeps.table`.
    """

    def __init__(self, settings: Settings, folder: Path, observer: Any) -> None:
        self.settings, self.folder, self.observer = settings, folder, observer
        self.workers: list[Worker] = []
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
            for worker in self.workers:
                worker.end()

    # ---- giving out -----------------------------------------------------------------------------------------------

    def _first(self) -> list[list[Job]]:
        """The first job, or all of them where some may be trained together."""
        if not self.settings.stack or self.source.reports:
            job = self.source.next()
            return [[job]] if job else []
        from dlrun.sweeps.stackable import groups

        found, reasons = groups(list(iter(self.source.next, None)))
        for line in reasons:
            self.observer.said(line)
        size = self.settings.stack_size
        return [group[n : n + size] for group in found for n in range(0, len(group), size)]

    def _give_out(self) -> bool:
        """Gives every idle worker something to do. Whether anything is running now."""
        while True:
            worker = next((worker for worker in self.workers if not worker.jobs), None)
            if worker is None and len(self.workers) >= self.limit:
                break
            if not (jobs := self._next()):
                break
            worker = worker or self._start()
            worker.jobs, worker.members, worker.begun, worker.since = jobs, len(jobs), False, time.monotonic()
            there = [replace(job, folder=job.folder.absolute()) for job in jobs]  # wherever a run may go
            worker.send((there, {"threads": self.threads, "reports": self.source.reports}))
        return any(worker.jobs for worker in self.workers)

    def _next(self) -> list[Job]:
        if self.waiting:
            return self.waiting.popleft()
        job = self.source.next()
        return [job] if job else []

    def _again(self, worker: Worker) -> None:
        """Gives the jobs of a worker out again, each alone, before all others."""
        self.waiting.extendleft([job] for job in reversed(worker.jobs))
        worker.jobs = []

    # ---- workers --------------------------------------------------------------------------------------------------

    def _start(self) -> Worker:
        taken = {worker.number for worker in self.workers}
        number = next(n for n in range(len(taken) + 1) if n not in taken)
        worker = Worker.start(number, number % self.devices if self.devices else None, self.folder.absolute())
        self.workers.append(worker)
        return worker

    def _remove(self, worker: Worker) -> None:
        worker.discard()
        self.workers.remove(worker)

    def _decide(self, device: str) -> None:
        """How many workers there shall be, with how many threads. `device`: as the jobs have it."""
        wanted, threads = self.settings.workers, self.settings.threads
        self.devices = self.workers[0].devices() if device in ("auto", "cuda") else 0
        if wanted != "auto":
            limit = wanted
        elif self.devices or device.startswith("cuda"):
            limit = max(1, self.devices)
        else:
            limit = min(cores() // (1 if threads == "auto" else threads), free_memory() // WORKER_BYTES)
        self.limit = max(1, min(limit, self.source.total))
        self.threads = max(1, cores() // self.limit) if threads == "auto" else threads
        if self.devices:  # the first worker was started before it could be given one of them
            self.workers.pop().end()

    def _grow(self, outcome: Outcome) -> None:
        """Packs several runs on a device, as many as fit by the measured peak of the one that ended."""
        if self.devices and self.settings.workers == "auto" and outcome.memory is not None:
            total = outcome.facts.get("device_mib") or 0.0
            each = packed(outcome.memory, total, cores(), self.devices)
            self.limit = max(self.limit, min(each * self.devices, self.source.total))

    # ---- listening ------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Waits for the next message, death or deadline."""
        busy = [worker for worker in self.workers if worker.jobs]
        handles = [handle for worker in busy for handle in (worker.pipe, worker.process.sentinel)]
        ready = multiprocessing.connection.wait(handles, self._patience(busy))
        for worker in busy:
            if worker.pipe in ready:
                if not self._read(worker):
                    self._bury(worker)
            elif worker.process.sentinel in ready:
                self._bury(worker)
            elif worker.jobs and time.monotonic() > self._deadline(worker):
                worker.kill(trace=True)
                self._give_up(worker, "timeout", f"still running after launcher.timeout={self.settings.timeout:g} s")

    def _patience(self, busy: Sequence[Worker]) -> float | None:
        """Seconds until the next deadline; None: for ever."""
        if self.settings.timeout is None:
            return None
        now = time.monotonic()
        return max(0.01, min(self._deadline(worker) - now for worker in busy))

    def _deadline(self, worker: Worker) -> float:
        """When a worker is taken to hang: a stacked model has the time of all its members."""
        return worker.since + (self.settings.timeout or float("inf")) * worker.members

    def _read(self, worker: Worker) -> bool:
        """Takes all messages of a worker. False if it has died."""
        while True:
            try:
                if worker not in self.workers or not worker.pipe.poll():
                    return True
                message = worker.pipe.recv()
            except (EOFError, OSError):
                return False
            self._take(worker, message)

    def _take(self, worker: Worker, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == "said":
            self.observer.said(rest[0])
            return
        if kind == "leaving":
            self._again(worker)  # what it was given meanwhile
            self._remove(worker)
            return
        if kind == "apart":
            self.observer.said(rest[0])
            self._again(worker)
            return
        if (job := worker.job(rest[0])) is None:
            return
        if kind == "begun":
            worker.begun, self.stillborn = True, 0
            self.observer.begun(job)
        elif kind == "report":
            worker.send(bool(self.source.reported(job, rest[1], rest[2])))
        elif kind == "ended":
            worker.jobs.remove(job)
            self._ended(job, rest[1])

    def _ended(self, job: Job, outcome: Outcome) -> None:
        self.source.ended(job, outcome)
        self.observer.ended(job, outcome)
        self._grow(outcome)
        if outcome.failed and self.settings.fail_fast:
            raise Failed(f"run {job.number} failed: {outcome.message}")

    # ---- what goes wrong ------------------------------------------------------------------------------------------

    def _bury(self, worker: Worker) -> None:
        """Records what a worker died of; another one takes its place."""
        message = worker.cause_of_death()
        if not worker.begun:  # it had been asked to end, say, after its last job
            self.stillborn += 1
            if self.stillborn == STILLBORN:
                raise ConfigError(
                    f"launcher: {STILLBORN} workers in a row did not begin: {message}; without workers: hydra/launcher=basic"
                )
            self._again(worker)
        elif worker.members > 1:
            names = ", ".join(f"#{job.number}" for job in worker.jobs)
            self.observer.said(f"{names}: {message}; now one by one")
            self._again(worker)
        self._give_up(worker, "killed", message)

    def _give_up(self, worker: Worker, status: str, message: str) -> None:
        """Records the jobs that a dead worker had in hand."""
        self._remove(worker)
        for job in worker.jobs:
            record(job, status, message)
            submitted.note(self.folder, job.number, status)
            self._ended(job, outcome_of(job, Outcome(status, None, message), time.monotonic() - worker.since))

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
                        if worker.pipe.recv()[0] == "report":
                            worker.send(False)
                if not worker.process.is_alive():
                    busy.remove(worker)
