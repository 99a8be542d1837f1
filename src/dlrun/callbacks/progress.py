"""What a person sees while a run is under way."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback, Run
from dlrun.spec import StepResult

if TYPE_CHECKING:
    import rich.console
    import rich.progress

SHOWN = ("train/loss", "val/loss", "val/accuracy", "val/rmse")  # in the line of an epoch, those there are


@CALLBACKS.register("progress")
class Progress(Callback):
    """A line per epoch and, on a terminal, a live bar below; at the end a table of the metrics and what to type next.

    All on standard error, so that the output of a command stays free for data. The bar's loss is the one of the last
    logging step: reading it at every step would synchronise the device.

    Args:
        bar: draw the bar; null: where standard error is a terminal.
        refresh_per_s: the bar is drawn at most this often.
    """

    def __init__(self, *, bar: bool | None = None, refresh_per_s: Annotated[float, Gt(0), Le(60)] = 5.0) -> None:
        self.bar, self.interval = bar, 1.0 / refresh_per_s
        self._progress: rich.progress.Progress | None = None
        self._task: Any = None
        self._draw_at = math.inf
        self._now = self._epoch_start = self._waited = 0.0
        self._first_sample = 0
        self._logged: Mapping[str, float] = {}
        self._latest: dict[str, Mapping[str, float]] = {}

    @cached_property
    def console(self) -> rich.console.Console:
        """Where it is shown. First asked for after the first step, which does not wait for rich to be imported."""
        from rich.console import Console

        return Console(stderr=True, highlight=False)

    def on_fit_start(self, run: Run) -> None:
        self._draw_at = math.inf if self.bar is False else 0.0

    def on_epoch_start(self, run: Run) -> None:
        self._now = self._epoch_start = time.monotonic()
        self._first_sample, self._waited = run.samples, run.wait_s
        self._latest = {}

    def on_step(self, run: Run, result: StepResult) -> None:
        self._now = time.monotonic()
        if self._now >= self._draw_at:
            self._draw(run, run.epoch + 1)

    def on_log(self, run: Run, scalars: Mapping[str, float]) -> None:
        self._logged = scalars

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        self._latest[split] = metrics

    def on_epoch_end(self, run: Run) -> None:
        self.console.print(self._epoch_line(run), soft_wrap=True)
        if self._progress is not None:
            self._draw(run, min(run.epoch + 1, run.epochs))

    def on_fit_end(self, run: Run) -> None:
        self._stop()

    def on_run_end(self, run: Run, results: Mapping[str, Any]) -> None:
        from dlrun.callbacks._closing import metrics_table, what_next

        self._stop()
        if any(results.get("metrics", {}).values()):
            self.console.print(metrics_table(results))
        for line in what_next(run, results.get("status", "")):
            self.console.print(line, soft_wrap=True, markup=False)  # a command must stay on one line to be copied

    def _draw(self, run: Run, epoch: int) -> None:
        """Draws the bar; the first time, and only where there is one, it is made."""
        if self._progress is None:
            if not (self.console.is_terminal if self.bar is None else self.bar):
                self._draw_at = math.inf
                return
            self._progress = _new_bar(self.console)
            self._task = self._progress.add_task(
                "", total=run.total_steps, completed=run.step, epoch=epoch, epochs=run.epochs, shown=""
            )
            self._progress.start()
        shown = "loss {train/loss:.4g}  {samples_per_s:,.0f}/s".format_map(self._logged) if self._logged else ""
        self._progress.update(self._task, completed=run.step, epoch=epoch, shown=shown)
        self._progress.refresh()
        self._draw_at = time.monotonic() + self.interval

    def _stop(self) -> None:
        self._draw_at = math.inf
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _epoch_line(self, run: Run) -> str:
        """`epoch 3/10  step 1266  train/loss 0.0812  val/loss 0.0743  val/accuracy 0.9781  9,812 samples/s  6.1 s`"""
        values = {f"{split}/{name}": v for split, metrics in self._latest.items() for name, v in metrics.items()}
        training = max(self._now - self._epoch_start, 1e-9)  # without validation
        parts = [f"epoch {run.epoch}/{run.epochs}", f"step {run.step}"]
        parts += [f"{name} {values[name]:.4g}" for name in dict.fromkeys((*SHOWN, run.monitor)) if name in values]
        parts += [f"{(run.samples - self._first_sample) / training:,.0f} samples/s"]
        if run.wait_s > 0:
            parts += [f"{(run.wait_s - self._waited) / training:.0%} waiting for data"]
        return "  ".join([*parts, f"{time.monotonic() - self._epoch_start:.1f} s"])


def _new_bar(console: rich.console.Console) -> rich.progress.Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("{task.fields[shown]}"),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,  # a thread of its own would take time from training; `_draw` refreshes
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        expand=True,
    )
