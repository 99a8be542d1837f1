"""Halving the learning rate on a plateau of validation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Lt

from dlrun.registry import ConfigError, did_you_mean
from dlrun.schedulers import SCHEDULERS
from dlrun.schedulers._base import Scheduler


@SCHEDULERS.register("halve_on_plateau")
class HalveOnPlateau(Scheduler):
    """The learning rate stays until the monitored quantity stops improving, is then divided by two, and so on.

    For direction "min" a value improves if value < best - threshold, with best the last value that improved; for "max"
    if value > best + threshold. After `patience` validations in a row without improvement, factor <- max(min_factor,
    factor * what it is), and the count starts again. NaN never improves.

    Args:
        total_steps: number of updates of the whole run.
        steps_per_epoch: number of updates of an epoch.
        monitor: a validation metric such as val/loss; val/error is 1 - val/accuracy, or val/loss where there is no
            accuracy.
        direction: "min" if less is better, "max" if more is.
        factor: what the learning rate is multiplied by on a plateau.
        patience: validations in a row without improvement that make a plateau.
        threshold: how much a value must differ from the best to improve on it.
        min_factor: what is left of the learning rate at least.

    Raises:
        ConfigError: for a monitor that is not of validation, or that nothing reports.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        monitor: str = "val/error",
        direction: Literal["min", "max"] = "min",
        factor: Annotated[float, Gt(0), Lt(1)] = 0.5,
        patience: Annotated[int, Ge(1)] = 1,
        threshold: Annotated[float, Ge(0)] = 0.0,
        min_factor: Annotated[float, Ge(0), Lt(1)] = 0.0,
    ) -> None:
        super().__init__(total_steps, steps_per_epoch)
        if not monitor.startswith("val/"):
            raise ConfigError(f"scheduler.monitor: got '{monitor}'; expected a validation metric such as val/loss")
        self.monitor = monitor
        self.sign = 1.0 if direction == "min" else -1.0
        self.drop, self.patience, self.threshold, self.min_factor = factor, patience, threshold, min_factor
        self.current = 1.0
        self.best: float | None = None
        self.bad = 0  # validations in a row without improvement

    def shape(self, step: int) -> float:
        return self.current

    def observe(self, metrics: Mapping[str, float]) -> None:
        value = self._value(metrics)
        if not math.isnan(value) and (self.best is None or self.sign * value < self.sign * self.best - self.threshold):
            self.best, self.bad = value, 0
            return
        self.bad += 1
        if self.bad >= self.patience:
            self.current = max(self.min_factor, self.current * self.drop)
            self.bad = 0

    def check_metrics(self, names: Sequence[str]) -> None:
        self._value(dict.fromkeys(names, 0.0))

    def _value(self, metrics: Mapping[str, float]) -> float:
        if self.monitor in metrics:
            return float(metrics[self.monitor])
        if self.monitor == "val/error" and "val/accuracy" in metrics:
            return 1.0 - float(metrics["val/accuracy"])
        if self.monitor == "val/error" and "val/loss" in metrics:
            return float(metrics["val/loss"])
        if self.best is not None:
            return math.nan  # reported before, undefined this time
        reported = [name for name in metrics if name.startswith("val/")]
        raise ConfigError(
            f"scheduler.monitor: '{self.monitor}' is not reported; allowed: {', '.join(['val/error', *reported])}"
            f"{did_you_mean(self.monitor, reported)}"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"current": self.current, "best": self.best, "bad": self.bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.current, self.best, self.bad = state["current"], state["best"], state["bad"]
