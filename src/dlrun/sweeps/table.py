"""What a sweep shows while it runs: on a terminal a table that is drawn anew, elsewhere one line for each run that ended."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from dlrun.sweeps.jobs import Job, Outcome

SHOWN = 12  # running jobs at most


class Table:
    """Told of what happens in a sweep.

    Args:
        total: jobs there will be at most.
        words_of: which of its words tell a job from the others.
        higher_is_better: of the monitored value; None: not known, and the best is not shown.
    """

    def __init__(
        self, total: int, words_of: Callable[[Job], list[str]], higher_is_better: Callable[[str], bool | None]
    ) -> None:
        self.total, self.words_of, self.higher_is_better = total, words_of, higher_is_better
        self.start = time.monotonic()
        self.running: dict[int, tuple[Job, float]] = {}
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0  # of the jobs that ran here to their end
        self.timed = 0
        self.best: tuple[float, str, Job] | None = None
        self.monitor = ""
        self.live: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self.live = Live(
                get_renderable=self._drawn, console=Console(stderr=True), transient=True, refresh_per_second=2
            )
            self.live.start()

    def begun(self, job: Job) -> None:
        """A job runs now."""
        self.running[job.number] = job, time.monotonic()

    def ended(self, job: Job, outcome: Outcome) -> None:
        """A job has ended."""
        self.running.pop(job.number, None)
        self.counts[outcome.status] += 1
        if outcome.seconds > 0.0 and not outcome.failed:
            self.seconds += outcome.seconds
            self.timed += 1
        self._keep_best(job, outcome)
        if outcome.status == "interrupted":
            return
        value = "" if outcome.value is None else f"  {outcome.facts.get('monitor') or 'value'} {outcome.value:.5g}"
        message = f": {outcome.message}" if outcome.failed else ""
        done = sum(self.counts.values())
        self._say(
            f"[{done}/{self.total}] #{job.number} {' '.join(self.words_of(job))}  {outcome.status}{message}{value}"
            + (f"  {outcome.seconds:.1f} s" if outcome.seconds else "")
        )

    def said(self, line: str) -> None:
        """A line to be passed on."""
        self._say(line)

    def close(self) -> None:
        """The sweep is over."""
        if self.live:
            self.live.stop()
            self.live = None

    def _say(self, line: str) -> None:
        if self.live:
            self.live.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            with contextlib.suppress(OSError):  # nobody reads it any more (`| head`): the runs are what counts
                print(line, file=sys.stderr, flush=True)

    def _keep_best(self, job: Job, outcome: Outcome) -> None:
        monitor = outcome.facts.get("monitor") or ""
        higher = self.higher_is_better(monitor) if monitor else None
        if outcome.value is None or higher is None:
            return
        if self.best is None or (outcome.value > self.best[0] if higher else outcome.value < self.best[0]):
            self.best = outcome.value, monitor, job

    def _drawn(self) -> Any:
        from rich.console import Group
        from rich.markup import escape
        from rich.table import Table as Grid

        done = sum(self.counts.values())
        failed = sum(count for status, count in self.counts.items() if Outcome(status).failed)
        head = f"{len(self.running)} running, {done} of {self.total} done, {failed} failed{self._left(done)}"
        lines = [head]
        if self.best:
            value, monitor, job = self.best
            lines.append(f"best so far: {monitor} {value:.5g}  #{job.number} {' '.join(self.words_of(job))}")
        grid = Grid.grid(padding=(0, 2))
        now = time.monotonic()
        for job, since in list(self.running.values())[:SHOWN]:
            grid.add_row(f"#{job.number}", escape(" ".join(self.words_of(job))), f"{now - since:.0f} s")
        return Group(*(escape(line) for line in lines), grid)

    def _left(self, done: int) -> str:
        """The time to go, if all jobs take as long as those that ended."""
        if not self.timed or done >= self.total:
            return ""
        elapsed = time.monotonic() - self.start
        at_once = max(1.0, self.seconds / max(elapsed, 1e-9))
        seconds = (self.total - done) * self.seconds / self.timed / at_once
        return f", about {duration(seconds)} to go"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
