"""A worker process of a sweep: takes jobs from a pipe and runs them, one after the other; see `dlrun.sweeps.pool`."""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from dlrun import rundir
from dlrun.actions import ACTIONS
from dlrun.actions.train import train
from dlrun.registry import ConfigError
from dlrun.saved_sweep import job_config
from dlrun.signals import Interrupted, InterruptedAtOnce
from dlrun.suggest import check_keys, file_error
from dlrun.sweeps.job import ended, has_checkpoint, is_own, perform_job, perform_stack
from dlrun.sweeps.jobs import Job, Outcome

SOUND = ("finished", "pruned", "diverged", "interrupted")  # ends after which a process is as good as new
STACKED_LOG = "stacked.log"
"""In the folder of the sweep: what stacked runs print."""


def main(pipe: Connection, lifeline: Connection, about: Mapping[str, Any]) -> None:
    """Runs jobs until the main process says None, a signal stops the run in hand, or the main process is gone.

    Args:
        pipe: to the main process.
        lifeline: at its end when the main process is gone.
        about: the folder to work in (`cwd`), the environment (`environ`), the CUDA device (`device`: a number, or None for the
            choice of each job), the folder of the sweep (`folder`).
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers it, and asks for a checkpoint by SIGTERM
    threading.Thread(target=_leave_with, args=(lifeline,), daemon=True).start()
    os.chdir(about["cwd"])
    os.environ.clear()
    os.environ.update(about["environ"])
    _see_device(about["device"])
    worker = _Worker(pipe, Path(about["folder"]))
    clean = _Clean(about["cwd"])
    gc.freeze()  # what was imported is never garbage
    code = 0
    with contextlib.suppress(EOFError, OSError):
        while (message := pipe.recv()) is not None:
            if message == "devices":
                pipe.send(torch.cuda.device_count())
                continue
            try:
                sound = worker.run(*message)
            except (Interrupted, KeyboardInterrupt) as error:
                code = int(getattr(error, "code", 143))
                break
            if not sound:  # code that failed may have left anything behind
                pipe.send(("leaving",))
                break
            clean.restore()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without taking PyTorch apart, which takes a second


def _leave_with(lifeline: Connection) -> None:
    """Ends this process when the main one is gone: nobody would hear of its runs, and another command may go on with them."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _see_device(number: int | None) -> None:
    """Lets this process see one CUDA device only: the `number`-th of those there are."""
    if number is None:
        return
    there = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    os.environ["CUDA_VISIBLE_DEVICES"] = there[number] if number < len(there) else str(number)


class _Clean:
    """What a run may have changed in its process and the next one must find as it was; a run that failed ends the process."""

    def __init__(self, cwd: str) -> None:
        self.cwd, self.environ, self.dtype = cwd, dict(os.environ), torch.get_default_dtype()

    def restore(self) -> None:
        os.chdir(self.cwd)
        if os.environ != self.environ:
            os.environ.clear()
            os.environ.update(self.environ)
        torch.set_default_dtype(self.dtype)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class _Worker:
    def __init__(self, pipe: Connection, sweep_folder: Path) -> None:
        self.pipe, self.sweep_folder = pipe, sweep_folder

    def run(self, jobs: list[Job], options: Mapping[str, Any]) -> bool:
        """One job, or several as one stacked model. Whether all went as they should."""
        self.options, self.sound = options, True
        if len(jobs) > 1:
            self._run_stacked(jobs)
            return self.sound
        job = jobs[0]
        self.pipe.send(("begun", job.number))
        outcome = Outcome("interrupted")
        try:
            outcome = perform_job(job, self.sweep_folder, lambda *args: self._perform(job, *args), job_config, _pass)
        finally:
            self._ended(job, outcome)
            gc.collect()
        return self.sound

    def _run_stacked(self, jobs: list[Job]) -> None:
        """Those that have begun already go on alone; if the others cannot be stacked, the main process gives them out again."""
        fresh = [job for job in jobs if not (is_own(job) and (ended(job) or has_checkpoint(job.folder)))]
        for job in jobs:
            if job not in fresh:
                self.run([job], self.options)
        if len(fresh) < 2:
            for job in fresh:
                self.run([job], self.options)
            return
        from dlrun.stacking import NotStackable

        try:
            whole = perform_stack(fresh, self.sweep_folder, lambda end: self._train_stacked(fresh, end), self._ended)
        except NotStackable as error:
            names = ", ".join(f"#{job.number}" for job in fresh)
            self.pipe.send(("apart", f"{names}: not stacked: {error}"))
            return
        if not whole:
            raise Interrupted(143)
        gc.collect()

    def _train_stacked(self, jobs: list[Job], end: Callable[[int, Outcome], None]) -> list[Outcome]:
        from dlrun.stacking import train_stacked

        for job in jobs:
            check_keys(job.config)
            self.pipe.send(("begun", job.number))
        with _output_into(self.sweep_folder / STACKED_LOG):
            configs = [self._with_threads(job.config) for job in jobs]
            return train_stacked(configs, [job.folder for job in jobs], end)

    def _ended(self, job: Job, outcome: Outcome) -> None:
        self.sound &= outcome.status in SOUND
        self.pipe.send(("ended", job.number, _with_device(outcome)))

    def _perform(self, job: Job, config: dict[str, Any], folder: Path) -> float | None:
        with _output_into(folder / rundir.LOG):
            try:
                check_keys(config)
                config = self._with_threads(config)
                if self.options["reports"]:
                    from dlrun.callbacks._reporting import Reporter

                    return train(config, folder, [Reporter(lambda *report: self._tell(job, *report))])
                value: float | None = ACTIONS.build(config["action"])(config, folder)
                return value
            except OSError as error:  # of the machine: a line is enough
                raise ConfigError(file_error(error)) from error
            except InterruptedAtOnce:
                raise
            except KeyboardInterrupt as error:  # no signal does that here
                raise RuntimeError("KeyboardInterrupt was raised in the run") from error

    def _tell(self, job: Job, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Tells the main process of a validation. Whether the run shall be pruned."""
        self.pipe.send(("report", job.number, epoch, dict(metrics)))
        return bool(self.pipe.recv())

    def _with_threads(self, config: dict[str, Any]) -> dict[str, Any]:
        trainer = config["trainer"]
        if not isinstance(trainer, dict) or trainer.get("threads") is not None:
            return config
        return {**config, "trainer": {**trainer, "threads": self.options["threads"]}}


def _with_device(outcome: Outcome) -> Outcome:
    """With the memory of the CUDA device, if this process uses one."""
    if torch.cuda.is_initialized():
        outcome.facts["device_mib"] = torch.cuda.mem_get_info()[1] / 2**20
    return outcome


def _pass(line: str) -> None:
    """The main process says it."""


@contextlib.contextmanager
def _output_into(log: Path) -> Iterator[None]:
    """Sends all that is printed, by whatever code, into the log of a run; and where it hangs, at SIGUSR2."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(log, "a", encoding="utf-8"))
        faulthandler.register(signal.SIGUSR2, file, all_threads=True)
        stack.callback(faulthandler.unregister, signal.SIGUSR2)
        faulthandler.enable(file)
        stack.callback(faulthandler.disable)
        sys.stdout.flush()
        sys.stderr.flush()
        for number in (1, 2):
            before = os.dup(number)
            stack.callback(os.close, before)
            stack.callback(os.dup2, before, number)
            os.dup2(file.fileno(), number)
        stack.callback(sys.stderr.flush)
        stack.callback(sys.stdout.flush)
        yield
