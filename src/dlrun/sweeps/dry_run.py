"""`dry_run=true`: the jobs of a sweep, and an estimate of what they would take, without running them.

The time and disk of a job are those of the jobs of this sweep that have finished; where there are none, one job of each kind
(model, data, number of epochs) is built, a few of its steps are timed in a folder that is removed again, and the size of its
state is taken.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from dlrun import rundir
from dlrun.shell import readable
from dlrun.sweeps.job import ended, has_checkpoint, is_own
from dlrun.sweeps.jobs import Job
from dlrun.sweeps.table import duration

ESTIMATOR = "dlrun.actions._estimate"
KINDS = 8  # that are built to estimate them, at most
SHOWN = 200  # jobs in the table, at most


def show(folder: Path, jobs: Sequence[Job]) -> None:
    """Prints the jobs with their states and the estimate."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    states = {job.number: state_of(job) for job in jobs}
    shared = set(jobs[0].overrides).intersection(*(job.overrides for job in jobs))
    table = Table(title=escape(f"{readable(folder)}: {len(jobs):,} runs (dry run)"), title_justify="left")
    for column in ("run", "id", "state", "words"):
        table.add_column(column)
    for job in jobs[:SHOWN]:
        words = [word for word in job.overrides if word not in shared] or job.overrides
        table.add_row(str(job.number), job.id, states[job.number], escape(" ".join(words)))
    console = Console()
    console.print(table)
    if len(jobs) > SHOWN:
        console.print(f"... and {len(jobs) - SHOWN:,} more")
    left = [job for job in jobs if states[job.number] not in ("finished", "pruned", "diverged")]
    console.print(escape(_estimate(jobs, left)), highlight=False, soft_wrap=True)


def state_of(job: Job) -> str:
    """Where a job stands: how it ended, `half done`, or `to run`."""
    if outcome := ended(job):
        return outcome.status
    if not is_own(job):
        return "to run"
    results = rundir.read_results(job.folder) or {}
    again = f", was {results['status']}" if results.get("status") else ""
    return f"half done{again}" if has_checkpoint(job.folder) else f"to run{again}"


def _estimate(jobs: Sequence[Job], left: Sequence[Job]) -> str:
    if not left:
        return "nothing is left to run"
    measured = _measured(jobs)
    if measured:
        seconds, size = len(left) * measured[0], len(left) * measured[1]
        source = "by the runs that have finished"
    else:
        if (found := _built(left)) is None:
            return f"{len(left):,} runs to do; no estimate, since none could be built"
        seconds, size = found
        source = "by some steps of it" if len(left) == 1 else "by some steps of one run of each kind"
    return (
        f"{len(left):,} runs to do: about {duration(seconds)} one after the other on this machine, and {_bytes(size)} of disk "
        f"({source})"
    )


def _measured(jobs: Sequence[Job]) -> tuple[float, float] | None:
    """Median seconds and bytes of the jobs that have finished."""
    found = []
    for job in jobs:
        results = rundir.read_results(job.folder) if is_own(job) else None
        if results and results.get("status") == "finished":
            files = (path for path in job.folder.rglob("*") if path.is_file())
            found.append((results["timing"]["wall_s"], sum(path.stat().st_size for path in files)))
    return (median(s for s, _ in found), median(b for _, b in found)) if found else None


def _built(left: Sequence[Job]) -> tuple[float, float] | None:
    """Seconds and bytes of all jobs that are left, by one of each kind; None if none can be built."""
    estimate: Callable[..., tuple[float, float]] = importlib.import_module(ESTIMATOR).estimate  # a higher floor
    kinds: dict[str, list[Job]] = {}
    for job in left:
        if not job.problem:
            about = [job.config.get(key) for key in ("model", "trainer")]
            data = {k: v for k, v in (job.config.get("data") or {}).items() if k not in ("fold", "split_seed")}
            kinds.setdefault(json.dumps([*about, data], sort_keys=True, default=str), []).append(job)
    seconds = size = 0.0
    known = 0
    for number, group in enumerate(kinds.values()):
        if number == KINDS:
            break
        print(f"dlrun: timing some steps of #{group[0].number} ...", file=sys.stderr)
        try:
            each, disk = estimate(group[0].config)
        except Exception as error:  # of a component of the user's, too
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"dlrun: no estimate for #{group[0].number}: {message}", file=sys.stderr)
            continue
        seconds, size, known = seconds + len(group) * each, size + len(group) * disk, known + len(group)
    if not known:
        return None
    share = len(left) / known
    return seconds * share, size * share


def _bytes(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} TiB"
