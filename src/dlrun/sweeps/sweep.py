"""The sweep that this process is at: one process at a time, its command written first, its leaderboard however it ends.

BaseException
  Stopped        ends a sweep: Hydra would make a warning of an Exception raised in a hook, and go on after one in a run
"""

from __future__ import annotations

import contextlib
import random
import shlex
import sys
from pathlib import Path

from dlrun import rundir
from dlrun.registry import ConfigError, imports_of
from dlrun.sweeps.manifest import Manifest, refuse_other, write

_flags: list[str] = []
_folder: Path | None = None
_failed = 0
_held = contextlib.ExitStack()


class Stopped(BaseException):
    """Ends a whole sweep because of `error`: a refused folder, or a signal."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def prepare(flags: list[str]) -> None:
    """Forgets the sweep before; `flags`: those of the command line but for --multirun."""
    global _flags, _folder, _failed
    release()
    _flags, _folder, _failed = flags, None, 0


def begin(folder: Path, words: list[str], hydra: list[str]) -> None:
    """Makes and locks the folder of a sweep, or of the same sweep stopped earlier, and writes its command into it.

    Raises Stopped for the folder of another sweep, one that another process is at, or one that cannot be written.
    """
    global _folder
    started = Manifest.of(words, hydra, _flags)
    random.seed(str(started))  # Hydra's `shuffle(...)` numbers the runs by it: the same when the sweep goes on
    rundir.create(folder)
    try:
        refuse_other(folder, started)
        if folder.is_dir():  # else Hydra says why it cannot make it
            _held.enter_context(rundir.lock(folder, "hydra.sweep.dir"))
            refuse_other(folder, started)
            write(folder, started)
    except ConfigError as error:
        raise Stopped(error) from error
    _folder = folder


def release() -> None:
    """Lets the folder of the sweep go."""
    _held.close()


def failed_runs() -> int:
    """How many runs of the sweep that just ended did not finish; 0 where there was none."""
    return _failed


def finish(folder: Path) -> None:
    """Prints and writes the leaderboard of a sweep that came to its end."""
    global _failed
    from dlrun.sweeps.job import failures
    from dlrun.sweeps.leaderboard import Leaderboard

    board = Leaderboard.read(folder)
    _failed = max(board.failed, failures())
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
    from dlrun.callbacks._closing import command, readable

    words = [command("dlrun"), *map(shlex.quote, flags), shlex.quote(f"{key}={readable(folder)}")]
    for config in (folder / rundir.CONFIG, *folder.glob(f"*/{rundir.CONFIG}")):
        with contextlib.suppress(ConfigError):
            if imports_of(rundir.read_config(config.parents[1], key)):
                return " ".join([*words, "trust_imports=true"])
    return " ".join(words)


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
