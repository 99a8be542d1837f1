"""jobs.jsonl in the folder of a sweep: every job as it was submitted, written before any of them runs, and what became of each.

First come lines of jobs, `{"job": 0, "id": ..., "overrides": [...], "folder": ..., "config": {...}}`, then, as things go on,
lines of states, `{"job": 0, "state": "running", "at": ...}`. Lines are only ever added; one that was cut short (by a kill, a
full disk) is passed over. What counts for a run is its own results.json.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dlrun.registry import ConfigError
from dlrun.sweeps.jobs import Job

FILE = "jobs.jsonl"


def read(folder: Path) -> dict[int, Job]:
    """The jobs of the sweep in `folder` by number; none where none was submitted. Raises ConfigError for a damaged file."""
    jobs = {}
    for number, line in enumerate(_lines(folder), start=1):
        if line is None or "config" not in line:
            continue
        try:
            job = _job(line, folder)
        except (LookupError, TypeError, ValueError) as error:
            raise damaged(folder, f"line {number}") from error
        jobs[job.number] = job
    return jobs


def states(folder: Path) -> dict[int, str]:
    """The last known state of each job by number: submitted, running, or how it ended."""
    found = {}
    for line in _lines(folder):
        if line and isinstance(line.get("job"), int):
            found[line["job"]] = str(line.get("state", "submitted"))
    return found


def add(folder: Path, jobs: Iterable[Job]) -> None:
    """Adds jobs. Raises ConfigError if they cannot be written (a full disk)."""
    lines = [
        {"job": j.number, "id": j.id, "overrides": j.overrides, "folder": os.path.relpath(j.folder, folder)}
        | ({"problem": j.problem} if j.problem else {})
        | {"config": j.config}
        for j in jobs
    ]
    try:
        _append(folder, lines)
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir: cannot write {folder / FILE} ({error.strerror})") from error


def note(folder: Path, number: int, state: str) -> None:
    """Adds the state of a job; in a folder that cannot be written, nothing."""
    at = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
    with contextlib.suppress(OSError):
        _append(folder, [{"job": number, "state": state, "at": at}], whole=False)


def _append(folder: Path, lines: list[dict[str, Any]], whole: bool = True) -> None:
    """Adds lines in one write, so that those of several processes do not mix, after ending a line that was cut short.
    `whole`: all of it or nothing, and on the disk when this returns."""
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    handle = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":
            data = b"\n" + data
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            if whole:
                os.fsync(handle)
        except OSError:
            if whole:
                os.ftruncate(handle, size)
            raise
    finally:
        os.close(handle)


def _lines(folder: Path) -> list[dict[str, Any] | None]:
    """What each line holds; None for one that cannot be read."""
    try:
        text = (folder / FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"hydra.sweep.dir: cannot read {folder / FILE} ({error.strerror})") from error
    return [_object(line) for line in text.splitlines() if line.strip()]


def _object(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _job(line: dict[str, Any], folder: Path) -> Job:
    number, overrides, config, below = line["job"], line["overrides"], line["config"], Path(line["folder"])
    plain = isinstance(number, int) and isinstance(config, dict) and isinstance(line["id"], str)
    if not plain or not all(isinstance(word, str) for word in overrides) or below.is_absolute() or ".." in below.parts:
        raise ValueError(line["job"])
    return Job(number, list(overrides), config, folder / below, line["id"], str(line.get("problem", "")))


def damaged(folder: Path, what: str) -> ConfigError:
    """To be raised for a file that does not hold what it must."""
    return ConfigError(
        f"hydra.sweep.dir: {folder / FILE} is damaged ({what}); restore it from a copy of the sweep, or start it in a new "
        "folder"
    )
