"""The folder of a run: created for one run only, locked while it is written, readable by everybody afterwards.

outputs/<date>/<time>_<model>_<data>[_n]/
  .hydra/config.yaml   the resolved configuration, written once      dlrun.log   what was said
  run.json             code version, versions, device, seed          checkpoints/ tensorboard/ metrics.jsonl
  results.json         written last
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun.registry import ConfigError
from dlrun.settings import RUN_ACTIONS

CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"  # of a job of a sweep: what it was given on the command line
RESULTS = "results.json"
LAST = Path("checkpoints") / "last.pt"
BEST = Path("checkpoints") / "best.pt"
LOCK = ".lock"

_claimed: dict[str, str] = {}
_created: list[Path] = []  # by this process, deepest first
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


def claim(action: str, wanted: str) -> str:
    """The resolver behind `hydra.run.dir`: creates `wanted`, or `wanted_2`, `wanted_3` ... if it is taken, and gives this
    process the same answer ever after. Actions that make no run get the current folder, in which nothing is written."""
    if action not in RUN_ACTIONS:
        return "."
    if not _armed:
        return wanted
    if wanted not in _claimed:
        _claimed[wanted] = _create(wanted)
    return _claimed[wanted]


def _create(wanted: str) -> str:
    above = _missing(Path(wanted).parent)
    try:
        Path(wanted).parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 100_000):
            path = wanted if number == 1 else f"{wanted}_{number}"
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)  # atomic: of two processes only one succeeds
                _created.extend([Path(path).absolute(), *above])
                return path
    except OSError as error:
        raise ConfigError(f"hydra.run.dir: cannot create '{wanted}' ({error.strerror})") from error
    raise ConfigError(f"hydra.run.dir: '{wanted}' and 100,000 numbered siblings exist already")


def create(folder: str | Path) -> None:
    """Makes the folder that Hydra is about to make: of several processes that want it only the one that made it may remove
    it again. What is wrong with it, Hydra finds out itself."""
    above = _missing(Path(folder).parent)
    with contextlib.suppress(OSError):
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        os.mkdir(folder)
        _created.extend([Path(folder).absolute(), *above])


def remove_created() -> None:
    """Removes the folder that this process made for a run that died on its configuration or was stopped at its start, unless
    a checkpoint or another process came into it, and those made above it, unless anything else did."""
    for number, folder in enumerate(_created):
        if number == 0 and not any(folder.rglob(LAST.name)) and not any(folder.rglob(LOCK)):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
    _created.clear()


def _missing(folder: Path) -> list[Path]:
    """Those of `folder` and the folders above it that do not exist yet, deepest first."""
    return [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def refuse_used(folder: Path) -> None:
    """Raises ConfigError if `folder` holds a run already: no two runs share a folder, however they are started."""
    if is_run(folder):
        raise ConfigError(f"hydra.run.dir: '{folder}' already holds a run; go on with it by resume={folder}")


def read_config(folder: str | Path, key: str) -> dict[str, Any]:
    """The saved configuration of a run; `key` (`run` or `resume`) is blamed if there is none."""
    import yaml

    file = Path(folder) / CONFIG
    if not file.is_file():
        reason = "no such folder" if not Path(folder).is_dir() else f"no {CONFIG} in it"
        raise ConfigError(f"{key}: '{folder}' is not the folder of a run ({reason})")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"{key}: {file} is damaged; restore it from a copy of the run")
    return config


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the resolved configuration, unless the folder has one (a resume never rewrites it)."""
    import yaml

    if not is_run(folder):
        write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))


def write_overrides(folder: Path, overrides: list[str]) -> None:
    """Writes what a job of a sweep was given on the command line."""
    import yaml

    write_text(folder / OVERRIDES, yaml.safe_dump(overrides, allow_unicode=True))


def read_overrides(folder: Path) -> list[str]:
    """What a job of a sweep was given on the command line; nothing for another folder."""
    import yaml

    try:
        found = yaml.safe_load((folder / OVERRIDES).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def write_text(path: Path, text: str) -> None:
    """Writes a file so that it is there whole or not at all: temporary file, fsync, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Strict JSON (no NaN), indented, atomically."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_results(folder: Path) -> dict[str, Any] | None:
    """`results.json` of a run, or None where there is none yet or it cannot be read."""
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Holds the folder for this process. Raises ConfigError, with the pid and host, if another process writes there."""
    import fcntl

    path = folder / LOCK
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise ConfigError(f"resume: '{folder}' is in use by {file.read().strip() or 'another process'}") from None
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
