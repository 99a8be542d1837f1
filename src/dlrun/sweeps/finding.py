"""Which runs are meant by `sweep=` and `action.runs=`, and in which settings they differ. No torch."""

from __future__ import annotations

import difflib
import glob
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.settings import GROUPS
from dlrun.sweeps.jobs import WITHOUT_EFFECT
from dlrun.sweeps.leaderboard import varied
from dlrun.sweeps.records import REPEATS, Record, read_record, read_sweep

_CHANGES_NOTHING = ("data.root", "data.workers", "data.prefetch_factor", "data.cache")


def runs_of_sweep(folder: str) -> list[Record]:
    """The runs of one sweep. Raises ConfigError if it is not the folder of a sweep."""
    path = Path(os.path.expanduser(folder))
    if not path.is_dir():
        raise ConfigError(f"sweep: no such folder: {folder}{_nearest(path)}")
    if found := read_sweep(path):
        return found
    if rundir.is_run(path):
        raise ConfigError(f"sweep: '{folder}' is a single run; runs are compared by action.runs=[folder,folder,...]")
    raise ConfigError(f"sweep: '{folder}' is not the folder of a sweep (no run of a sweep in it)")


def runs_of(patterns: Sequence[str]) -> list[Record]:
    """The runs in these folders, of sweeps all of theirs, each once; a name with * or ? stands for all that match.

    Raises ConfigError for a name that leads nowhere.
    """
    found: dict[Path, Record] = {}
    for pattern in patterns:
        records = [record for path in _paths(pattern) for record in _runs_in(path)]
        if not records:
            raise ConfigError(f"action.runs: '{pattern}' is neither the folder of a run nor of a sweep")
        for record in records:
            found.setdefault(record.folder.resolve(), record)
    records = list(found.values())
    if len({record.folder.resolve().parent for record in records}) > 1 or not all(r.settings for r in records):
        _settle(records)
    return records


def _paths(pattern: str) -> list[Path]:
    path = Path(os.path.expanduser(pattern))
    if path.exists():
        return [path]
    paths = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    if not paths:
        raise ConfigError(f"action.runs: no such folder: {pattern}{_nearest(path)}")
    return paths


def _runs_in(path: Path) -> list[Record]:
    if rundir.is_run(path) or (path / rundir.OVERRIDES).is_file():
        return [read_record(path)]
    return read_sweep(path)


def _nearest(path: Path) -> str:
    names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f"; did you mean '{path.parent / near[0]}'?" if near else ""


def _settle(records: Iterable[Record]) -> None:
    """Gives runs of several commands the settings in which their configurations differ: of a group the option, and of its
    settings those that differ among runs of the same options."""
    runs = list(records)
    groups = [group for group in GROUPS if group not in WITHOUT_EFFECT]
    differ = varied(_relevant(run) for run in runs)
    named = [group for group in groups if f"{group}.name" in differ]
    options = {id(run): json.dumps([run.flat.get(f"{group}.name") for group in named], default=str) for run in runs}
    alike = [[run for run in runs if options[id(run)] == option] for option in dict.fromkeys(options.values())]
    within = {key for same in alike for key in varied(_relevant(run) for run in same)}
    kept = [key for key in differ if key in within and key not in REPEATS]
    for run in runs:
        settings: dict[str, Any] = {group: run.flat.get(f"{group}.name") for group in named}
        run.settings = settings | {key: run.flat.get(key) for key in (*kept, *REPEATS)}


def _relevant(run: Record) -> dict[str, Any]:
    """The settings of a run that may change its results."""
    kept = {key: value for key, value in run.flat.items() if key.partition(".")[0] in (*GROUPS, "seed", "device")}
    return {k: v for k, v in kept.items() if k.partition(".")[0] not in WITHOUT_EFFECT and k not in _CHANGES_NOTHING}
