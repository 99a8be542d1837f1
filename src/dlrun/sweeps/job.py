"""One run of a sweep: whatever happens in it is recorded in its own folder, and the others go on."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.signals import Interrupted
from dlrun.sweeps.manifest import without_passing
from dlrun.sweeps.sweep import Stopped

_failed = 0
Config = dict[str, Any]


def failures() -> int:
    """How many jobs of this process failed since the last call."""
    global _failed
    failed, _failed = _failed, 0
    return failed


def perform_job(
    cfg: DictConfig,
    folder: Path,
    perform: Callable[[Config, Path], float | None],
    saved: Callable[[Config, Path], Config],
) -> float | None:
    """Performs the action; an error becomes `status: failed` in results.json, a traceback in dlrun.log, and no value.

    In a sweep that goes on, a run that finished or diverged is not repeated: its value is given again. A run with a
    checkpoint goes on from there; any other begins anew.

    Args:
        cfg: the composed configuration.
        folder: of the run.
        perform: the action.
        saved: gives the configuration to go on with, from the composed one and the folder.

    Raises Stopped at a signal, which ends the whole sweep.
    """
    global _failed
    overrides = without_passing(HydraConfig.get().overrides.task)
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    try:
        same = rundir.read_overrides(folder) == overrides  # else a fresh folder, or one that another job has taken
        if same and (ended := _ended(folder)):
            print(f"{os.path.relpath(folder)}: {ended['status']} already", file=sys.stderr)
            return (ended.get("best") or {}).get("value") if ended["status"] == "finished" else None
        print(f"{os.path.relpath(folder)}: {' '.join(overrides)}", file=sys.stderr)
        stopped = same and _has_checkpoint(folder)
        if not stopped:
            _begin_anew(folder, overrides, same)
        config = OmegaConf.to_container(cfg, resolve=True)
        return perform({**saved(config, folder), "resume": str(folder)} if stopped else config, folder)
    except (Exception, SystemExit) as error:  # the exit of a user's component is a failure like any other
        if isinstance(error, Interrupted):
            raise Stopped(error) from error
        _failed += 1
        message = _message(error)
        print(f"dlrun: {folder.name}: {message}", file=sys.stderr)
        if rundir.read_overrides(folder) == overrides:
            _record(config, folder, error, message)
        return None


def _ended(folder: Path) -> Config | None:
    """The results of a run that would only give the same ones again."""
    results = rundir.read_results(folder)
    return results if results and results.get("status") in ("finished", "diverged") else None


def _has_checkpoint(folder: Path) -> bool:
    last = folder / rundir.LAST
    return rundir.is_run(folder) and (last.is_file() or last.with_name("previous.pt").is_file())


def _begin_anew(folder: Path, overrides: list[str], emptied: bool) -> None:
    """Writes the overrides of a run; `emptied`: after taking away what an earlier attempt, which got nowhere, has left.

    Raises ConfigError if another run is in the folder, or another process is at work there.
    """
    with rundir.lock(folder):
        for path in folder.iterdir() if emptied else ():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != rundir.LOCK:
                path.unlink()
        rundir.refuse_used(folder)
        rundir.write_overrides(folder, overrides)


def _record(config: Config, folder: Path, error: BaseException, message: str) -> None:
    """Writes down why a run failed, unless another process is at work there, or nothing can be written (a full disk)."""
    with contextlib.suppress(ConfigError, OSError), rundir.lock(folder, patience_s=0):
        if not isinstance(error, ConfigError) and type(error).__name__ != "Diverged":
            with open(folder / "dlrun.log", "a", encoding="utf-8") as file:
                file.write("".join(traceback.format_exception(error)))
        if rundir.read_results(folder) is None:  # a run that began has written its own
            failed = {"status": "failed", "message": message, "metrics": {}, "best": {}}
            rundir.write_json(folder / rundir.RESULTS, failed)
        if not rundir.is_run(folder):
            rundir.write_config(folder, config)


def _message(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        return f"ended by sys.exit({text})"
    return text or type(error).__name__
