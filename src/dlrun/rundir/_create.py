"""Making the folder of a run so that no two runs share it, and removing it again if the run never began."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from dlrun.registry import ConfigError
from dlrun.rundir._lock import LOCK, lock
from dlrun.rundir._names import CONFIG, RESULTS
from dlrun.settings import RUN_ACTIONS

_claimed: dict[str, str] = {}
_created: list[Path] = []  # by this process, deepest first
_own: set[Path] = set()  # folders in which this process began a run
_armed = False


def arm() -> None:
    """From now on `claim` creates folders. Not called for `--cfg` and the like, which must leave nothing behind."""
    global _armed
    _armed = True


def disarm() -> None:
    """Forgets what `claim` gave and made: another command begins."""
    global _armed
    _armed = False
    _claimed.clear()
    _created.clear()
    _own.clear()


def claim(action: str, wanted: str) -> str:
    """The resolver behind `hydra.run.dir`: creates `wanted`, or `wanted_2`, `wanted_3` ... if it is taken, and gives this
    process the same answer ever after. Actions that make no run get the current folder, in which nothing is written."""
    if action not in RUN_ACTIONS:
        return "."
    if not _armed:
        return wanted
    if wanted not in _claimed:
        _claimed[wanted] = _create_numbered(wanted)
    return _claimed[wanted]


def _create_numbered(wanted: str) -> str:
    try:
        for number in range(1, 100_000):
            path = wanted if number == 1 else f"{wanted}_{number}"
            with contextlib.suppress(FileExistsError):
                _make(Path(path))
                return path
    except OSError as error:
        raise ConfigError(f"hydra.run.dir: cannot create '{wanted}' ({error.strerror})") from error
    raise ConfigError(f"hydra.run.dir: '{wanted}' and 100,000 numbered siblings exist already")


def create(folder: str | Path) -> None:
    """Makes the folder that Hydra is about to make: of several processes that want it only the one that made it may remove
    it again. What is wrong with it, Hydra finds out itself."""
    with contextlib.suppress(OSError):
        _make(Path(folder))


def _make(folder: Path) -> None:
    """Makes one folder, and those above it. Raises FileExistsError if another process was quicker."""
    above = [path for path in folder.absolute().parents if not path.exists()]
    for attempt in range(10):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.mkdir(folder)  # atomic: of two processes only one succeeds
        except FileNotFoundError:  # a process that ended has just removed the folder above
            if attempt == 9:
                raise
        else:
            _created.extend([folder.absolute(), *above])
            return


def began(folder: Path) -> None:
    """Notes that this process began the run in `folder`."""
    _own.add(folder.absolute())


def remove_created() -> None:
    """Removes the folder that this process made for a run that died on its configuration or was stopped at its start, unless
    a checkpoint or another process came into it, and those made above it, unless anything else did."""
    for number, folder in enumerate(_created):
        if number == 0:
            with contextlib.suppress(ConfigError), lock(folder, patience_s=0):  # else another process is at work there
                if (folder in _own or not (folder / CONFIG).exists()) and _is_worthless(folder):
                    shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    _created.clear()


def _is_worthless(folder: Path) -> bool:
    """Whether a folder holds no checkpoint, no metrics of a run that could write none, and, as that of a sweep, no run that
    ended or still goes on."""
    jobs = [path for name in (RESULTS, LOCK) for path in folder.glob(f"*/{name}")]
    metrics = any(path.stat().st_size for path in folder.rglob("metrics.jsonl"))
    return not jobs and not metrics and not any(folder.rglob("*.pt"))
