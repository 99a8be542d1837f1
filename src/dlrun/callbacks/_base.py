"""What a callback is, and when its hooks run. Callbacks observe: they own what leaves the process (event files, progress,
metric files), never touch weights or control flow, and removing one changes no number.

    on_fit_start(run)
    for epoch in range(epochs):
        on_epoch_start(run)
        for batch in data:
            forward, backward, update
            on_step(run, result)                 # every step: must not synchronise the device
            on_log(run, scalars)                 # every `trainer.log_every_steps` steps: plain numbers
        for batch in validation data:
            on_evaluation_batch(run, "val", batch, result)
        on_evaluation(run, "train"|"val", metrics)      # metrics.jsonl gets its line
        checkpoint                               # `state_dict` of every callback goes into it
        on_epoch_end(run)
    on_fit_end(run)
    on_evaluation(run, "test", metrics)          # once, on the best checkpoint
    on_run_end(run, results)                     # results.json as a dictionary; also after divergence or interruption
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dlrun.spec import Batch, DataSpec, StepResult

if TYPE_CHECKING:
    from dlrun.data._module import DataModule
    from dlrun.losses._base import Loss
    from dlrun.tasks._base import Task


@dataclass
class Run:
    """What callbacks may look at. The trainer fills it and keeps the counters up to date.

    Attributes:
        folder: the run's folder.
        config: the resolved configuration, plain containers.
        spec: of the data.
        data: splits to iterate; `data.split("val")` gives batches as the network sees them in evaluation.
        model: in training mode while training; its last finite gradients are in `.grad` at `on_step` and `on_log`.
        task, loss: as built.
        optimizer: its `param_groups[0]["lr"]` is the current learning rate.
        device: where the model is.
        epoch: epochs finished. step: updates finished, over the whole run. samples: training samples seen.
        epochs, total_steps, steps_per_epoch: what the run will reach.
        monitor: e.g. `val/loss`. best: epoch, step, value of the best checkpoint so far, empty before the first.
        history: the latest metrics by split, `{"train": {...}, "val": {...}}`.
        evaluation_batch: samples that are evaluated at a time, where memory did not suffice for more; None: whole batches.
    """

    folder: Path
    config: dict[str, Any]
    spec: DataSpec
    data: DataModule
    model: nn.Module
    task: Task
    loss: Loss
    optimizer: torch.optim.Optimizer
    device: torch.device
    epochs: int
    total_steps: int
    steps_per_epoch: int
    monitor: str
    epoch: int = 0
    step: int = 0
    samples: int = 0
    best: dict[str, Any] = field(default_factory=dict)
    history: dict[str, dict[str, float]] = field(default_factory=dict)
    evaluation_batch: int | None = None

    @property
    def wait_s(self) -> float:
        """Seconds that steps of this process have waited for data; 0 where the data are in memory."""
        return getattr(self.data, "wait_s", 0.0)


class Callback:
    """Does nothing at every hook; subclasses override those they need."""

    def on_fit_start(self, run: Run) -> None: ...

    def on_epoch_start(self, run: Run) -> None: ...

    def on_step(self, run: Run, result: StepResult) -> None:
        """`result.loss` is a tensor on the device: reading it synchronises."""

    def on_log(self, run: Run, scalars: Mapping[str, float]) -> None:
        """`scalars`: `train/loss`, `train/objective`, `train/penalty`, `lr`, `gradient_norm` (before
        clipping), `samples_per_s`."""

    def on_evaluation_batch(self, run: Run, split: str, batch: Batch, result: StepResult) -> None:
        """A batch of an evaluation, with the weights that are evaluated. Not called in every epoch: an evaluation may be
        left out, or be stopped by a signal and begun anew by the resumed run."""

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        """`metrics`: plain names (`loss`, `accuracy`); undefined ones are left out."""

    def on_epoch_end(self, run: Run) -> None: ...

    def on_fit_end(self, run: Run) -> None: ...

    def on_run_end(self, run: Run, results: Mapping[str, Any]) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to continue the same files (such as a length to truncate to)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave, before `on_fit_start`."""
