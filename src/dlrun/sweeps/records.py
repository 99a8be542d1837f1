"""What runs left behind, as far as comparing them needs it. Whatever cannot be read counts as missing; no torch."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError

REPEATS = ("seed", "data.fold")
"""Settings of one and the same experiment: runs that differ in nothing else are one row."""

HISTORY = "metrics.jsonl"
MISSING, UNREADABLE = "missing", "unreadable"  # statuses of a run without results.json, and with a damaged one
LARGEST = 1e100  # squares of larger values overflow

HIGHER_IS_BETTER = {
    **dict.fromkeys(("accuracy", "auroc", "f1", "r2", "top5"), True),
    **dict.fromkeys(("loss", "ece", "mae", "nll", "rmse", "squared_error"), False),
}
"""Whether a larger value of a metric is better: what the metrics themselves say, without importing torch."""


@dataclass
class Record:
    """One run: its folder, settings (the words of its sweep), status, best monitored value and test metrics.

    Attributes:
        results: results.json, or nothing.
    """

    folder: Path
    settings: dict[str, Any]
    status: str
    monitor: str
    value: float | None
    test: dict[str, float]
    results: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty if it cannot be read."""
        return _read_config(self.folder)

    @cached_property
    def flat(self) -> dict[str, Any]:
        """The configuration by dotted key."""
        return flat(self.config)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The evaluations in metrics.jsonl, in order; lines that cannot be read are left out."""
        return _read_history(self.folder / HISTORY)

    @cached_property
    def split_hashes(self) -> dict[str, str]:
        """Of the sample indices of each split, as far as known."""
        hashes = _read_json(self.folder / "run.json").get("split_hashes")
        return hashes if isinstance(hashes, dict) else {}

    @property
    def finished(self) -> bool:
        """Whether it counts: it finished with a number."""
        return self.status == "finished" and self.value is not None

    def get(self, key: str) -> Any:
        """A setting by dotted key, as it was typed or as it was saved; of a group the name of its option."""
        name = self.settings.get(key)
        return name if name is not None else self.flat.get(key, self.flat.get(f"{key}.name"))

    def at_best(self, metric: str) -> float | None:
        """A metric such as `val/accuracy` in the best epoch by the monitor; of the test set the one value there is."""
        if metric == self.monitor:
            return self.value
        split, _, name = metric.partition("/")
        if split == "test":
            return self.test.get(name)
        best = _mapping(self.results.get("best"))
        lines = [line for line in self.history if line.get("split") == split and line.get("step") == best.get("step")]
        if not lines and best and best.get("epoch") == self.results.get("epochs"):  # no metrics.jsonl: the last epoch
            lines = [_mapping(_mapping(self.results.get("metrics")).get(split))]
        return number(lines[-1].get(name)) if lines else None

    def by(self, metric: str) -> Record:
        """The same run with the value of another metric."""
        value = self.at_best(metric)
        other = copy.copy(self)
        other.value, other.monitor = value, metric
        return other


def read_record(folder: Path) -> Record:
    """The run in a folder, whatever state it is in."""
    results = rundir.read_results(folder)
    found = results or {"status": UNREADABLE if (folder / rundir.RESULTS).is_file() else MISSING}
    best, metrics = _mapping(found.get("best")), _mapping(found.get("metrics"))
    test = {str(k): v for k, value in _mapping(metrics.get("test")).items() if (v := number(value)) is not None}
    words = [word.lstrip("+").partition("=") for word in rundir.read_overrides(folder)]
    settings = {key: value for key, _, value in words}
    record = Record(folder, settings, str(found.get("status")), "", number(best.get("value")), test, found)
    record.monitor = str(best.get("monitor") or _mapping(record.config.get("trainer")).get("monitor") or "")
    return record


def read_sweep(folder: Path) -> list[Record]:
    """The runs of a sweep by number."""
    if not folder.is_dir():
        return []
    paths = [path for path in folder.iterdir() if (path / rundir.OVERRIDES).is_file()]
    return [read_record(path) for path in sorted(paths, key=_by_number)]


def reported(records: Iterable[Record]) -> list[str]:
    """The metrics that runs report, such as `val/loss`."""
    found: dict[str, None] = {}
    for record in records:
        for split, values in _mapping(record.results.get("metrics")).items():
            found.update({f"{split}/{name}": None for name in _mapping(values)})
    return sorted(found, key=lambda name: (not name.startswith("val/"), name))


def higher_is_better(metric: str, records: Iterable[Record]) -> bool | None:
    """Whether a larger value of a metric is better. Of one that dlrun does not ship, runs that monitored it tell: their best
    value is the smallest or the largest of all. None where nothing tells."""
    name = metric.partition("/")[2] or metric
    if name in HIGHER_IS_BETTER:
        return HIGHER_IS_BETTER[name]
    for record in records:
        if record.monitor == metric and record.value is not None:
            split = metric.partition("/")[0]
            seen = [number(line.get(name)) for line in record.history if line.get("split") == split]
            others = [value for value in seen if value is not None and value != record.value]
            if others:
                return record.value > others[0]
    try:
        from dlrun.metrics._collection import direction  # imports torch, and the packages that bring components
    except ImportError:
        return None
    try:
        return direction(metric) == "max"
    except ConfigError:
        return None


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"dropout": 0.5}} -> {"model.dropout": 0.5}"""
    found: dict[str, Any] = {}
    for key, value in node.items():
        inner = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def number(value: Any) -> float | None:
    """A finite number that can be squared, or None."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST
    return float(value) if usable and math.isfinite(value) else None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        return rundir.read_config(folder, "sweep")
    except ConfigError:
        return {}


def _read_history(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [line for line in found if isinstance(line, dict)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return _mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _by_number(path: Path) -> tuple[int, str]:
    return (int(path.name) if path.name.isdigit() else 1 << 30, path.name)
