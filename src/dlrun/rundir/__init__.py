"""The folder of a run: created for one run only, locked while it is written, readable by everybody afterwards.

outputs/<date>/<time>_<model>_<data>[_n]/
  .hydra/config.yaml   the resolved configuration, written once      dlrun.log   what was said
  run.json             code version, versions, device, seed          checkpoints/ tensorboard/ metrics.jsonl
  results.json         written last
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dlrun.registry import ConfigError
from dlrun.rundir._create import arm, began, claim, create, disarm, remove_created
from dlrun.rundir._lock import LOCK, holds, lock
from dlrun.rundir._names import BEST, CONFIG, LAST, OVERRIDES, RESULTS, SAVED
from dlrun.rundir._write import write_csv, write_json, write_text

__all__ = [
    "BEST",
    "CONFIG",
    "LAST",
    "LOCK",
    "OVERRIDES",
    "RESULTS",
    "SAVED",
    "arm",
    "claim",
    "create",
    "disarm",
    "is_run",
    "lock",
    "read_config",
    "read_overrides",
    "read_results",
    "refuse_used",
    "remove_created",
    "write_config",
    "write_csv",
    "write_json",
    "write_overrides",
    "write_text",
]

LOG = "dlrun.log"


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def refuse_used(folder: Path) -> None:
    """Raises ConfigError if `folder` holds a run already: no two runs share a folder, however they are started. To be called
    again with the folder locked, since another process may have made a run of it in the meantime."""
    if not is_run(folder):
        return
    if not holds(folder):
        with lock(folder, "hydra.run.dir"):  # a run at work is named rather than offered for resuming
            pass
    raise ConfigError(f"hydra.run.dir: '{folder}' already holds a run; go on with it by resume={folder}")


def read_config(folder: str | Path, key: str) -> dict[str, Any]:
    """The saved configuration of a run; `key` (`run` or `resume`) is blamed if there is none."""
    import yaml

    folder = Path(folder)
    file = folder / CONFIG
    if not file.is_file():
        raise ConfigError(f"{key}: {_no_run(folder)}")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError, RecursionError):  # ValueError: not UTF-8, or a date such as 2026-99-99
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"{key}: {file} is damaged; restore it from a copy of the run")
    return config


def _no_run(folder: Path) -> str:
    if not folder.is_dir():
        return f"'{folder}' is not the folder of a run (no such folder)"
    if any((folder / name).exists() for name in (LOCK, LOG)):
        return f"the run in '{folder}' stopped before it began: nothing was trained; run the command again"
    return f"'{folder}' is not the folder of a run (no {CONFIG} in it)"


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes what a run is made of (see `SAVED`) of the resolved configuration, unless the folder has one: a resume never
    rewrites it."""
    import yaml

    if not is_run(folder):
        saved = {key: value for key, value in config.items() if key in SAVED}
        began(folder)
        write_text(folder / CONFIG, yaml.safe_dump(saved, sort_keys=False))


def write_overrides(folder: Path, overrides: list[str]) -> None:
    """Writes what a job of a sweep was given on the command line."""
    import yaml

    write_text(folder / OVERRIDES, yaml.safe_dump(overrides, allow_unicode=True))


def read_overrides(folder: Path) -> list[str]:
    """What a job of a sweep was given on the command line; nothing for another folder."""
    import yaml

    try:
        found = yaml.safe_load((folder / OVERRIDES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    return [str(word) for word in found] if isinstance(found, list) else []


def read_results(folder: Path) -> dict[str, Any] | None:
    """`results.json` of a run, or None where there is none yet or it cannot be read."""
    try:
        found = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
