"""One job of a sweep: whatever happens in it is recorded in its own folder, and the others go on."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dlrun import rundir
from dlrun.registry import ConfigError

_failed = 0


def failures() -> int:
    """How many jobs of this process failed since the last call."""
    global _failed
    failed, _failed = _failed, 0
    return failed


def perform_job(cfg: DictConfig, folder: Path, perform: Callable[[dict[str, Any], Path], float | None]) -> float | None:
    """Performs the action; an error becomes `status: failed` in results.json, a traceback in dlrun.log, and no value.

    A signal (Interrupted, KeyboardInterrupt) ends the whole sweep.
    """
    global _failed
    overrides = list(HydraConfig.get().overrides.task)
    print(f"{os.path.relpath(folder)}: {' '.join(overrides)}", file=sys.stderr)
    config: Any = OmegaConf.to_container(cfg, resolve=False)
    try:
        rundir.refuse_used(folder)
        rundir.write_overrides(folder, overrides)
        config = OmegaConf.to_container(cfg, resolve=True)
        return perform(config, folder)
    except Exception as error:
        if type(error).__name__ == "Interrupted":
            raise
        _failed += 1
        print(f"dlrun: {folder.name}: {' '.join(str(error).split())}", file=sys.stderr)
        if rundir.read_overrides(folder) == overrides:
            _record(config, folder, error)
        return None


def _record(config: dict[str, Any], folder: Path, error: Exception) -> None:
    if not isinstance(error, ConfigError) and type(error).__name__ != "Diverged":
        with open(folder / "dlrun.log", "a", encoding="utf-8") as file:
            file.write("".join(traceback.format_exception(error)))
    if rundir.read_results(folder) is None:  # a run that began has written its own
        rundir.write_json(
            folder / rundir.RESULTS,
            {"status": "failed", "message": " ".join(str(error).split()), "metrics": {}, "best": {}},
        )
    if not rundir.is_run(folder):
        rundir.write_config(folder, {k: v for k, v in config.items() if k not in ("resume", "run", "debug")})
