"""What a person sees while a run is under way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Gt, Le

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback, Run
from dlrun.callbacks._closing import metrics_table, what_next
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
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.bar = self.console.is_terminal if bar is None else bar
        self.interval = 1.0 / refresh_per_s
        self._progress: rich.progress.Progress | None = None
        self._task: Any = None
        self._drawn = self._epoch_start = self._rate = 0.0
        self._first_sample = 0
        self._latest: dict[str, Mapping[str, float]] = {}

    def on_fit_start(self, run: Run) -> None:
        self._drawn = self._epoch_start = time.monotonic()
        if not self.bar:
            return
        self._progress = _new_bar(self.console)
        self._task = self._progress.add_task(
            "", total=run.total_steps, completed=run.step, epoch=run.epoch + 1, epochs=run.epochs, shown=""
        )
        self._progress.start()

    def on_epoch_start(self, run: Run) -> None:
        self._epoch_start, self._first_sample = time.monotonic(), run.samples
        self._latest = {}
        if self._progress is not None:
            self._progress.update(self._task, epoch=run.epoch + 1)

    def on_step(self, run: Run, result: StepResult) -> None:
        if self._progress is not None and time.monotonic() - self._drawn >= self.interval:
            self._draw(run)

    def on_log(self, run: Run, scalars: Mapping[str, float]) -> None:
        if self._progress is not None:
            shown = f"loss {scalars['train/loss']:.4g}  {scalars['samples_per_s']:,.0f}/s"
            self._progress.update(self._task, shown=shown)

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        self._latest[split] = metrics
        if split == "train":  # comes when the epoch's last update is done
            self._rate = (run.samples - self._first_sample) / max(time.monotonic() - self._epoch_start, 1e-9)

    def on_epoch_end(self, run: Run) -> None:
        self.console.print(self._epoch_line(run), soft_wrap=True)
        if self._progress is not None:
            self._draw(run)

    def on_fit_end(self, run: Run) -> None:
        self._stop()

    def on_run_end(self, run: Run, results: Mapping[str, Any]) -> None:
        self._stop()
        if any(results.get("metrics", {}).values()):
            self.console.print(metrics_table(results))
        for line in what_next(run, results.get("status", "")):
            self.console.print(line, soft_wrap=True, markup=False)  # a command must stay on one line to be copied

    def _draw(self, run: Run) -> None:
        assert self._progress is not None
        self._progress.update(self._task, completed=run.step)
        self._progress.refresh()
        self._drawn = time.monotonic()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _epoch_line(self, run: Run) -> str:
        """`epoch 3/10  step 1266  train/loss 0.0812  val/loss 0.0743  val/accuracy 0.9781  9,812 samples/s  6.1 s`"""
        values = {f"{split}/{name}": v for split, metrics in self._latest.items() for name, v in metrics.items()}
        parts = [f"epoch {run.epoch}/{run.epochs}", f"step {run.step}"]
        parts += [f"{name} {values[name]:.4g}" for name in dict.fromkeys((*SHOWN, run.monitor)) if name in values]
        parts += [f"{self._rate:,.0f} samples/s", f"{time.monotonic() - self._epoch_start:.1f} s"]
        return "  ".join(parts)


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
