"""One real epoch of a configuration, with its phases timed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

import dlrun.trainer.loop
from dlrun import build
from dlrun.actions._phases import EPOCH, GRAPH, LOOP, STEPS, Instead, Phases, replaced, watched
from dlrun.actions.train import collect_results
from dlrun.callbacks import _closing
from dlrun.data._module import SplitName
from dlrun.trainer import Trainer

PHASES = ("data", "forward", "backward", "optimizer", "logging", "validation", "checkpoint", LOOP)
ENOUGH_STEPS = 100  # where an epoch has fewer, several are timed
SHORT = (
    1 / 3
)  # of the time: a first epoch that takes less is not timed, for what it does only once would weigh too much
READING, BUILDING, COMPILING, REST = "reading the data", "building the model", "compiling", "everything else"


def build_timed(config: dict[str, Any], folder: Path) -> tuple[Trainer, dict[str, float]]:
    """The trainer of a checked configuration, and the seconds that went into it."""
    phases = Phases(torch.device("cpu"))
    loop, models = dlrun.trainer.loop, build.MODELS
    with ExitStack() as stack:
        for owner, name, phase in (
            (build, "build_data", READING),
            (models, "build", BUILDING),
            (loop, "compiled", COMPILING),
        ):
            stack.enter_context(replaced(owner, name, phases.wrap(phase, getattr(owner, name))))
        trainer = build.build_trainer(config, folder)
    phases.switch(LOOP)
    seconds = {phase: phases.seconds.get((EPOCH, phase), 0.0) for phase in (READING, BUILDING, COMPILING, LOOP)}
    return trainer, {**{k: v for k, v in seconds.items() if k != LOOP and v}, REST: seconds[LOOP]}


class TimedEpoch:
    """Trains for an epoch, or the part of it that fits into the time; validates and writes checkpoints, as always. Of short
    epochs it takes several, the first of which is not timed.

    Args:
        trainer: freshly built; not to be used for anything else afterwards.
        seconds: at most so many are spent on the steps, and on a validation.

    Attributes:
        first_step_s: from the beginning until the first update, which counts as part of the start.
        first_log_s: from there until the second step.
        steps: those that were timed; the first one never is, unless it is the only one.
        steps_per_epoch: of a whole one.
    """

    def __init__(self, trainer: Trainer, seconds: float) -> None:
        self.trainer, self.run, self.limit_s = trainer, trainer.run, seconds
        self.phases = Phases(trainer.run.device)
        self.first_step_s = self.first_log_s = 0.0
        self.steps = self._skipped = self._epochs = self._validations = 0
        self.steps_per_epoch = min(self.run.steps_per_epoch, self.run.total_steps)
        self._updated_at: float | None = None
        self._began = math.inf  # when the second step began
        self._unseen = 1.0  # all samples of the validation / those that were evaluated

    def measure(self) -> dict[str, dict[str, float]]:
        """Trains. Returns what a whole epoch takes: by phase, `seconds`, `share` and `step_s` (seconds / steps).

        Raises what training raises: Diverged, Interrupted, ConfigError.
        """
        run, trainer = self.run, self.trainer
        run.epochs = min(run.epochs, 1 + math.ceil(ENOUGH_STEPS / self.steps_per_epoch))
        with ExitStack() as stack:
            stack.enter_context(replaced(_closing, "what_next", lambda *_: []))  # the folder will be gone
            stack.callback(self._close)
            stack.enter_context(watched(trainer, self.phases.wrap))
            self._put_in()
            self._fit_began = time.perf_counter()
            self.phases.reset()
            trainer.fit()
            self.phases.switch("end")
        return self._table()

    def _put_in(self) -> None:
        """Ends epochs and validations when their time is over, and tells steps from the rest."""
        run, trainer, step, evaluate = self.run, self.trainer, self.run.optimizer.step, self.trainer.evaluate

        def update(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self._updated_at = self._updated_at or self.phases.now()
            return result

        run.optimizer.step = update  # type: ignore[method-assign]
        run.data = Instead(run.data, epoch=partial(self._epoch, run.data.epoch))  # type: ignore[assignment]
        vars(trainer)["evaluate"] = partial(self._evaluate, evaluate)
        vars(trainer)["_batches"] = partial(self._batches, trainer._batches)
        vars(trainer)["_train_epoch"] = partial(self._train_epoch, trainer._train_epoch)
        for callback in trainer.callbacks:  # what comes once a run is none of an epoch's time
            vars(callback)["on_fit_end"] = self.phases.wrap("end", callback.on_fit_end)

    def _train_epoch(self, train_epoch: Callable[[], None]) -> None:
        if self.run.epoch == 1:  # the first one was short
            self._begin()
            self._skipped, self._epochs, self._validations = self.run.step, 0, 0
        self.phases.switch(LOOP, STEPS)
        self._epochs += 1
        train_epoch()
        if self.run.epoch == 0 and self.phases.now() - self._fit_began > SHORT * self.limit_s:
            self.run.epochs = 1
        self.phases.switch(LOOP, EPOCH)

    def _epoch(self, epoch: Callable[..., Iterator[Any]], *args: Any, **options: Any) -> Iterator[Any]:
        for batch in epoch(*args, **options):
            yield batch
            if self._began == math.inf:  # here another batch is asked for
                self._begin()
            elif time.perf_counter() - self._began > self.limit_s:
                self.run.epochs = self.run.epoch + 1
                return

    def _begin(self) -> None:
        """The first step, with all that is done only once, is over."""
        now = self.phases.now()
        if self._began == math.inf:
            updated = self._updated_at or now
            self.first_step_s, self.first_log_s = updated - self._fit_began, now - updated
            self._skipped = self.run.step
        self._began = now
        self.phases.reset()

    def _evaluate(self, evaluate: Callable[..., dict[str, float]], split: SplitName) -> dict[str, float]:
        self._validations += 1
        found = evaluate(split)
        if self._unseen > 1:  # nobody reads the numbers, but some metrics need samples of all kinds
            found = dict.fromkeys(["loss", *self.trainer.train_metrics.names], 0.0) | found
        return found

    def _batches(self, batches: Callable[..., Iterator[Any]], split: SplitName) -> Iterator[Any]:
        end, seen = time.perf_counter() + self.limit_s, 0
        for batch in batches(split):
            yield batch
            seen += len(batch.indices)
            if time.perf_counter() > end and split == "val" and seen < self.run.spec.num_val:
                self._unseen = self.run.spec.num_val / seen
                return

    def _close(self) -> None:
        """Lets the callbacks close their files."""
        results = {**collect_results(self.trainer, "profiled", {}, 0.0), "metrics": {}}
        with ExitStack() as stack:
            for callback in self.trainer.callbacks:
                stack.callback(callback.on_run_end, self.run, results)

    def _table(self) -> dict[str, dict[str, float]]:
        self.steps = self.run.step - self._skipped
        if self._began == math.inf and self._updated_at:  # a run of a single step
            self.first_step_s = self._updated_at - self._fit_began
        found = {}
        for phase in (*PHASES, *([GRAPH] if self.trainer.graph else [])):
            seconds = self.phases.seconds[STEPS, phase] / self.steps * self.steps_per_epoch
            once = self.phases.seconds[EPOCH, phase]
            if phase == "validation":
                once *= self._unseen / max(1, self._validations) / self.trainer.validate_every_epochs
            else:
                once /= max(1, self._epochs)
            found[phase] = seconds + once
        whole = sum(found.values())
        return {
            phase: {"seconds": s, "share": s / whole, "step_s": s / self.steps_per_epoch} for phase, s in found.items()
        }
