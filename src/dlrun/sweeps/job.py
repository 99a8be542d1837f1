"""One run of a sweep: whatever happens in it is recorded in its own folder, and the others go on."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.shell import readable
from dlrun.signals import Interrupted
from dlrun.sweeps import submitted
from dlrun.sweeps.jobs import Job, Outcome

PATIENCE_S = 20.0
"""How long a job waits for its folder: a worker whose sweep was killed may still be leaving it."""

Config = dict[str, Any]


def perform_job(
    job: Job,
    sweep_folder: Path,
    perform: Callable[[Config, Path], float | None],
    saved: Callable[[Config, Path], Config],
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Performs the action; an error becomes `status: failed` in results.json, a traceback in dlrun.log, and no value.

    In a sweep that goes on, a run that finished, diverged or was pruned is not repeated: its value is given again. A run with
    a checkpoint goes on from there; any other begins anew.

    Args:
        job: as it was submitted.
        sweep_folder: where its states are noted.
        perform: the action.
        saved: gives the configuration to go on with, from the submitted one and the folder.
        say: told in a line what begins, ended already, or went wrong; None: on standard error.

    Raises Interrupted or KeyboardInterrupt at a signal.
    """
    say = say or _say
    start, folder = time.monotonic(), job.folder
    shown = readable(folder)
    try:
        if ended := begin(job, say):
            return ended
        submitted.note(sweep_folder, job.number, "running")
        stopped = has_checkpoint(folder)
        if not stopped:
            say(f"{shown}: {' '.join(job.overrides)}")
        value = perform({**saved(job.config, folder), "resume": str(folder)} if stopped else job.config, folder)
        outcome = Outcome("finished", value)
    except (Exception, SystemExit) as error:  # the exit of a user's component is a failure like any other
        if isinstance(error, Interrupted) or _is_requeued(error):
            submitted.note(sweep_folder, job.number, "interrupted")
            raise
        outcome = failed(job, error)
        say(f"dlrun: {folder.name}: {outcome.message}")
    outcome = outcome_of(job, outcome, time.monotonic() - start)
    submitted.note(sweep_folder, job.number, outcome.status)
    return outcome


def perform_stack(
    jobs: Sequence[Job],
    sweep_folder: Path,
    train: Callable[[Callable[[int, Outcome], None]], Sequence[Outcome]],
    tell: Callable[[Job, Outcome], None],
) -> bool:
    """Trains several fresh jobs as one stacked model. Whether they came to their end, rather than being interrupted.

    Args:
        jobs: none of which has begun.
        sweep_folder: where their states are noted.
        train: trains them; calls what it is given for each that has ended, by its place in `jobs`, and returns how each did.
            What it raises before it has written anything, NotStackable, is passed on; another error is that of all.
        tell: told of each job that has ended.
    """
    start = time.monotonic()
    left = dict(enumerate(jobs))

    def end(place: int, outcome: Outcome) -> None:
        if job := left.pop(place, None):
            outcome = outcome_of(job, outcome, time.monotonic() - start)
            submitted.note(sweep_folder, job.number, outcome.status)
            tell(job, outcome)

    for job in jobs:
        begin(job, lambda line: None)
        submitted.note(sweep_folder, job.number, "running")
    try:
        outcomes = train(end)
    except (Exception, SystemExit) as error:
        if isinstance(error, Interrupted) or type(error).__name__ == "NotStackable":
            raise
        outcomes = [failed(job, error) for job in jobs]
    for place, outcome in enumerate(outcomes):
        end(place, outcome)
    return all(outcome.status != "interrupted" for outcome in outcomes)


def begin(job: Job, say: Callable[[str], None]) -> Outcome | None:
    """Makes the folder of a job ready; of one that has nothing left to do, how it ended.

    Raises ConfigError if the configuration of the job cannot be resolved, if another run is in the folder, or if another
    process is at work there.
    """
    if outcome := ended(job):
        say(f"{readable(job.folder)}: {outcome.status} already")
        return outcome
    same = is_own(job)
    if not same or not has_checkpoint(job.folder):
        _begin_anew(job.folder, job.overrides, same)
    if job.problem:
        raise ConfigError(job.problem)
    return None


def ended(job: Job) -> Outcome | None:
    """How a job ended that would only give the same results again; None for one that is to be run."""
    if not is_own(job) or not (results := rundir.read_results(job.folder)):
        return None
    status = results.get("status")
    if status not in ("finished", "diverged", "pruned"):
        return None
    return outcome_of(job, Outcome(status, (results.get("best") or {}).get("value")), 0.0)


def is_own(job: Job) -> bool:
    """Whether the folder of a job is its own, rather than a fresh one or one that another job has taken."""
    return rundir.read_overrides(job.folder) == job.overrides


def has_checkpoint(folder: Path) -> bool:
    """Whether a run can be gone on with."""
    last = folder / rundir.LAST
    return rundir.is_run(folder) and (last.is_file() or last.with_name("previous.pt").is_file())


def failed(job: Job, error: BaseException) -> Outcome:
    """Writes down in the folder of a job why it failed."""
    message = _message(error)
    diverged = type(error).__name__ == "Diverged"
    if is_own(job):
        trace = "" if diverged or isinstance(error, ConfigError) else "".join(traceback.format_exception(error))
        record(job, "failed", message, trace, overwrite=isinstance(error, SystemExit))
    return Outcome("diverged" if diverged else "failed", None, message)


def record(job: Job, status: str, message: str, trace: str = "", overwrite: bool = True) -> None:
    """Writes results.json of a run that could not do it itself, and its traceback into its log, unless another process is at
    work there, or nothing can be written (a full disk). `overwrite`: what the run, or an earlier attempt, says of its end."""
    folder = job.folder
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(ConfigError, OSError))
        folder.mkdir(parents=True, exist_ok=True)
        stack.enter_context(rundir.lock(folder, patience_s=1))
        if not is_own(job):  # another job has taken the folder, or this one was killed before it could
            rundir.refuse_used(folder)
            rundir.write_overrides(folder, job.overrides)
        if trace:
            with open(folder / rundir.LOG, "a", encoding="utf-8") as file:
                file.write(trace)
        found = rundir.read_results(folder)
        if found is None or overwrite:
            results = {"metrics": {}, "best": {}, **(found or {}), "status": status, "message": message}
            rundir.write_json(folder / rundir.RESULTS, results)
        if not rundir.is_run(folder):
            rundir.write_config(folder, job.config)


def outcome_of(job: Job, outcome: Outcome, seconds: float) -> Outcome:
    """The outcome with what results.json knows besides."""
    results = rundir.read_results(job.folder) or {}
    best: Mapping[str, Any] = results.get("best") or {}
    status = results.get("status") if outcome.status == "finished" else outcome.status
    memory: Mapping[str, Any] = results.get("memory") or {}
    facts = {"metrics": results.get("metrics") or {}, "monitor": best.get("monitor", "")}
    return Outcome(
        status=status if status in ("finished", "pruned") else outcome.status,
        value=outcome.value if status == "finished" else None,
        message=outcome.message or str(results.get("message", "")),
        epochs=results.get("epochs") or 0,
        seconds=seconds,
        memory=memory.get("peak_device_mib"),
        facts=facts,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _begin_anew(folder: Path, overrides: list[str], emptied: bool) -> None:
    """Writes the overrides of a run; `emptied`: after taking away what an earlier attempt, which got nowhere, has left.

    Raises ConfigError if another run is in the folder, or another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with rundir.lock(folder, "hydra.sweep.dir", PATIENCE_S):
        if emptied:
            _empty(folder)
        rundir.refuse_used(folder)
        rundir.write_overrides(folder, overrides)


def _empty(folder: Path) -> None:
    """Takes away what a run has left in its folder, but whose it is: who is killed here can begin again."""
    whose = folder / rundir.OVERRIDES
    for path in (*folder.iterdir(), *whose.parent.iterdir()):
        if path in (whose, whose.parent) or path.name == rundir.LOCK:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _message(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return f"ended by sys.exit({text})"
    return text or type(error).__name__


def _is_requeued(error: BaseException) -> bool:
    """Whether a cluster takes its machine back and has queued the job again: Submitit then leaves by sys.exit(-1)."""
    return isinstance(error, SystemExit) and error.code == -1 and "submitit" in sys.modules
