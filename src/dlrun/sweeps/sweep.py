"""The sweep that this process is at: one process at a time, its command and jobs written first, its leaderboard at the end.

BaseException
  Stopped        ends a sweep: Hydra would make a warning of an Exception raised in a hook, and go on after one in a run
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.code_version import code_version
from dlrun.registry import ConfigError, imports_of
from dlrun.shell import command, readable
from dlrun.sweeps import submitted
from dlrun.sweeps.jobs import DONE, Job, Outcome
from dlrun.sweeps.manifest import Manifest, read, refuse_other, write

_flags: list[str] = []
_folder: Path | None = None
_failed = 0
_held = contextlib.ExitStack()


def _nothing(*_: Any) -> None:
    pass


_check: Callable[[dict[str, Any]], None] = _nothing
work_begins: Callable[[], None] = _nothing
"""To be called when all is ready and the first job is about to run: from then on there may be something to tidy up."""


class Stopped(BaseException):
    """Ends a whole sweep because of `error`: a refused folder, or a signal."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Failed(Exception):
    """The first failed job of a sweep with `fail_fast=true`."""


def prepare(
    flags: list[str],
    begins: Callable[[], None] = _nothing,
    check: Callable[[dict[str, Any]], None] = _nothing,
) -> None:
    """Forgets the sweep before.

    Args:
        flags: those of the command line but for --multirun.
        begins: see `work_begins`.
        check: raises ConfigError for the configuration of a job that must not be run.
    """
    from dlrun.sweeps.whole import tolerant

    global _flags, _folder, _failed, work_begins, _check
    release()
    _held.enter_context(tolerant())
    _flags, _folder, _failed, work_begins, _check = flags, None, 0, begins, check


def begin(folder: Path, words: list[str], hydra: list[str]) -> None:
    """Makes and locks the folder of a sweep, or of the same sweep stopped earlier, and writes its command into it.

    Raises Stopped for the folder of another sweep, one that another process is at, or one that cannot be written.
    """
    global _folder
    started = _started(words, hydra)
    rundir.create(folder)
    try:
        refuse_other(folder, started)
        if folder.is_dir():  # else Hydra says why it cannot make it
            _held.enter_context(rundir.lock(folder, "hydra.sweep.dir"))
            refuse_other(folder, started)
            _tell_other_code(folder)
            write(folder, started)
    except ConfigError as error:
        raise Stopped(error) from error
    _folder = folder


def look(folder: Path, words: list[str], hydra: list[str]) -> None:
    """Like `begin` for a sweep that is only looked at: nothing is made."""
    try:
        refuse_other(folder, _started(words, hydra))
    except ConfigError as error:
        raise Stopped(error) from error


def _started(words: list[str], hydra: list[str]) -> Manifest:
    started = Manifest.of(words, hydra, _flags, code_version())
    random.seed(str(started))  # Hydra's `shuffle(...)` numbers the runs by it: the same when the sweep goes on
    return started


def submit(jobs: Sequence[Job]) -> list[Job]:
    """Writes down jobs of this sweep, and returns them as they are to be run: those that were submitted before as they were
    submitted then, whatever has been edited since, which is said.

    Raises ConfigError if they cannot be written, if the file of the jobs is damaged, or for a job that must not be run.
    """
    assert _folder is not None, "a sweep has begun"
    known = submitted.read(_folder)
    for job in jobs:
        if Path(os.path.normpath(job.folder)).parent != Path(os.path.normpath(_folder)):
            raise ConfigError(
                f"hydra.sweep.subdir: run {job.number} would lie in '{job.folder}'; expected a folder in '{_folder}'"
            )
        if job.number not in known and any((job.folder / name).exists() for name in (rundir.OVERRIDES, rundir.RESULTS)):
            raise submitted.damaged(_folder, f"job {job.number} is missing")
    asked = frozen(jobs, _folder)
    for job in asked:
        _check(job.config)
    submitted.add(_folder, [job for job in asked if job.number not in known])
    changed = [job.number for job, new in zip(asked, jobs, strict=True) if job.id != new.id]
    if changed:
        print(
            f"dlrun: {readable(_folder)}: {len(changed)} of {len(jobs)} runs have another configuration by now (#{changed[0]}"
            f"{', ...' if len(changed) > 1 else ''}); they are run as they were submitted; for the new one: rerun=true",
            file=sys.stderr,
        )
    return asked


def frozen(jobs: Sequence[Job], folder: Path) -> list[Job]:
    """The jobs of the sweep in `folder` as they were submitted, those that were. Raises ConfigError if other words stand
    there for one of them."""
    known = submitted.read(folder)
    for job in jobs:
        if job.number in known and known[job.number].overrides != job.overrides:
            raise submitted.damaged(folder, f"job {job.number} is '{' '.join(known[job.number].overrides)}'")
    return [known.get(job.number, job) for job in jobs]


def as_submitted(sweep_folder: Path, job: Job) -> Job:
    """A job that a launcher of Hydra's is about to run, as it was submitted; submitted now if a sweeper of Hydra's made it."""
    before = submitted.read(sweep_folder).get(job.number)
    if before is None:
        submitted.add(sweep_folder, [job])
        return job
    return before if before.overrides == job.overrides else job


def release() -> None:
    """Lets the folder of the sweep go."""
    _held.close()


def failed_runs() -> int:
    """How many runs of the sweep that just ended did not finish; 0 where there was none."""
    return _failed


def finish(folder: Path) -> None:
    """Prints and writes the leaderboard of a sweep that came to its end."""
    global _failed
    from dlrun.sweeps.leaderboard import Leaderboard

    board = Leaderboard.read(folder)
    states = submitted.states(folder).values()
    unfinished = sum(job.status not in DONE for job in board.jobs)
    _failed = max(unfinished, sum(Outcome(s).failed for s in states if s not in ("submitted", "running")))
    _show(board)


def how_to_go_on() -> str | None:
    """Of a sweep that is stopped: prints and writes the leaderboard of the runs that ended, and returns the command that goes
    on with it; None where there is no sweep or none of its runs left anything."""
    from dlrun.sweeps.leaderboard import Leaderboard

    if _folder is None or not _has_runs(_folder):
        return None
    board = Leaderboard.read(_folder)
    if ended := [job for job in board.jobs if job.status in ("finished", "diverged", "failed")]:
        _show(Leaderboard(_folder, ended))
    return command_line("resume", _folder, _flags)


def command_line(key: str, folder: Path, flags: list[str]) -> str:
    """`dlrun resume=<folder>`, to be pasted into a shell here."""
    words = [command("dlrun"), *map(shlex.quote, flags), shlex.quote(f"{key}={readable(folder)}")]
    for config in (folder / rundir.CONFIG, *folder.glob(f"*/{rundir.CONFIG}")):
        with contextlib.suppress(ConfigError):
            if imports_of(rundir.read_config(config.parents[1], key)):
                return " ".join([*words, "trust_imports=true"])
    return " ".join(words)


def _tell_other_code(folder: Path) -> None:
    """Warns where a sweep goes on with other code than it was begun with."""
    found = read(folder)
    now = code_version()
    if found is None or not found.code or found.code == now:
        return
    names = ("dlrun", "commit", "changes")
    differing = [
        f"{n} {found.code.get(n, 'none')} then, {now.get(n, 'none')} now"
        for n in names
        if found.code.get(n) != now.get(n)
    ]
    print(
        f"dlrun: warning: {readable(folder)}: the code has changed since the sweep began ({'; '.join(differing)})",
        file=sys.stderr,
    )


def _show(board: object) -> None:
    from dlrun.sweeps.leaderboard import Leaderboard

    assert isinstance(board, Leaderboard)
    try:
        board.write_csv()
    except (ConfigError, OSError) as error:  # a full disk, say: the runs are what counts
        print(f"dlrun: {board.folder}: no leaderboard.csv: {error}", file=sys.stderr)
    board.print()


def _has_runs(folder: Path) -> bool:
    return any(any(folder.glob(f"*/{name}")) for name in (rundir.RESULTS, "checkpoints/*.pt"))
