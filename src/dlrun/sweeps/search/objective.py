"""What a search looks for: a validation or training metric, of a run at its best checkpoint, or the mean over repeats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError, did_you_mean
from dlrun.sweeps.records import HIGHER_IS_BETTER as LARGER_IS_BETTER

KEY = "sweeper.objective"
METRICS_FILE = "metrics.jsonl"
Epochs = dict[int, dict[str, float]]
"""By epoch the metrics by full name, such as `val/loss`."""


@dataclass(frozen=True)
class Objective:
    """Args:
    names: the metrics, written `val/<metric>` or `train/<metric>`.
    directions: "min" or "max" for each.
    monitor: of the trainer.
    """

    names: tuple[str, ...]
    directions: tuple[str, ...]
    monitor: str

    @property
    def is_monitor(self) -> bool:
        return self.names == (self.monitor,)


def read_objective(given: str | Sequence[str] | None, direction: str | Sequence[str], monitor: str) -> Objective:
    """The objective of the settings; none given: the trainer's monitor.

    Raises ConfigError for a test metric, another form, or a metric whose direction is not known.
    """
    names = (monitor,) if given is None else (given,) if isinstance(given, str) else tuple(given)
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"{KEY}: got {list(names)}; expected one metric, or several different ones")
    for name in names:
        split, _, metric = str(name).partition("/")
        if split == "test":
            raise ConfigError(f"{KEY}: '{name}' is refused: the test set is sealed; use val/{metric}")
        if split not in ("val", "train") or not metric:
            raise ConfigError(f"{KEY}: got '{name}'; expected val/<metric> or train/<metric>, such as val/loss")
    each = (
        [direction] * len(names)
        if isinstance(direction, str)
        else list(direction) * (len(names) if len(direction) == 1 else 1)
    )
    return Objective(names, tuple(map(_direction, names, each)), monitor)


def _direction(name: str, given: str) -> str:
    if given != "auto":
        return given
    metric = name.partition("/")[2]
    if metric not in LARGER_IS_BETTER:
        known = list(LARGER_IS_BETTER)
        raise ConfigError(
            f"{KEY}: unknown metric '{metric}'; allowed: {', '.join(known)}{did_you_mean(metric, known)}; of a metric of "
            "your own, say sweeper.direction=min or max"
        )
    return "max" if LARGER_IS_BETTER[metric] else "min"


def not_reported(name: str, reported: Sequence[str]) -> ConfigError:
    """The error for an objective that no run has."""
    names = sorted(key for key in reported if not key.startswith("test/"))
    return ConfigError(f"{KEY}: '{name}' is not reported; reported: {', '.join(names)}{did_you_mean(name, names)}")


def read_epochs(folder: Path) -> Epochs:
    """What a run has written into its metrics file; nothing where it has none."""
    epochs: Epochs = {}
    try:
        lines = (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return epochs
    for text in lines:
        try:
            line: dict[str, Any] = json.loads(text)
            epoch, split = int(line.pop("epoch")), str(line.pop("split"))
        except (ValueError, LookupError, TypeError, AttributeError):  # a line that was cut short
            continue
        if split != "test":
            metrics = {f"{split}/{name}": v for name, v in line.items() if name != "step" and v is not None}
            epochs.setdefault(epoch, {}).update(metrics)
    return epochs


def values_of(
    objective: Objective, folder: Path, best: float | None, seen: Mapping[int, Mapping[str, float]]
) -> list[float]:
    """The objectives of a finished run, at its best checkpoint.

    Args:
        objective: what is searched for.
        folder: of the run.
        best: its best monitored value.
        seen: what it reported while it ran, by epoch.

    Raises LookupError, with a line that says why, if there is no such value.
    """
    if objective.is_monitor:
        if best is None:
            raise LookupError(f"{objective.monitor} has no value")
        return [best]
    results = rundir.read_results(folder) or {}
    epoch = (results.get("best") or {}).get("epoch")
    epochs = {**read_epochs(folder), **seen}
    metrics: Mapping[str, Any] = epochs.get(epoch, {}) if epoch is not None else {}
    if not metrics and epoch is not None and epoch == results.get("epochs"):
        metrics = {f"{s}/{name}": v for s, given in results.get("metrics", {}).items() for name, v in given.items()}
    if not metrics:
        raise LookupError(f"no metrics of epoch {epoch} are left; the objective needs callbacks=[metrics_file]")
    if lacking := [name for name in objective.names if metrics.get(name) is None]:
        raise LookupError(str(not_reported(lacking[0], list(metrics))))
    return [float(metrics[name]) for name in objective.names]
