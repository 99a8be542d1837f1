"""Statistics of interleaved measurements: everything is compared within a round, where the machine is the same."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LEVEL = 0.9
RESAMPLES = 10_000


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 90 % percentile bootstrap interval of the median: 10,000 resamples, always the same ones for n values."""
    chosen = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    medians = np.median(np.asarray(values, dtype=float)[chosen], axis=1)
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return float(low), float(high)


def estimate(values: Sequence[float]) -> dict[str, Any]:
    """`{"median", "low", "high", "n"}`: the median and its 90 % interval."""
    low, high = interval(values)
    return {"median": statistics.median(values), "low": low, "high": high, "n": len(values)}


def compare(values: Sequence[float], base: Sequence[float], unit: str, floor: float | None = None) -> dict[str, Any]:
    """A measure of a row: the ratio to `base`, round by round.

    Args:
        values: one for each round, in `unit`.
        base: the bare loop's, of the same rounds.
        unit: such as "s" or "MiB".
        floor: the ratio that is promised.
    """
    ratios = [value / of_base for value, of_base in zip(values, base, strict=True)]
    return _measure("ratio", ratios, values, unit, floor)


def subtract(values: Sequence[float], base: Sequence[float], unit: str, floor: float | None = None) -> dict[str, Any]:
    """Likewise, the difference to `base` in `unit`."""
    differences = [value - of_base for value, of_base in zip(values, base, strict=True)]
    return _measure("difference", differences, values, unit, floor)


def _measure(kind: str, found: list[float], values: Sequence[float], unit: str, floor: float | None) -> dict[str, Any]:
    return {
        "kind": kind,
        **estimate(found),
        "unit": unit,
        "value": statistics.median(values),
        "values": list(values),
        "floor": floor,
    }


def met(measure: Mapping[str, Any]) -> bool | None:
    """Whether the lower end of the interval is at or under the floor; None where there is no floor."""
    return None if measure["floor"] is None else measure["low"] <= measure["floor"]
