"""The best value so far, and when to stop waiting for a better one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal


class EarlyStopping:
    """Watches one monitored value, observed once per validation.

    For direction "min" (for "max" with the signs turned round):

    - a value is the best so far if value < best, or if it is the first; NaN never is;
    - a value makes progress if value < reference - min_delta, with reference the last value that made progress;
    - stop once `patience` observations in a row made no progress. Without patience: never.

    So small improvements are kept as the best even where they are too small to go on for.

    Args:
        direction: "min" if less is better, "max" if more is.
        patience: at least 1, or None.
        min_delta: at least 0.

    Attributes:
        best: the best value so far, None before the first.
        best_at: the number of its observation, counted from 1; 0 before the first.
    """

    def __init__(self, direction: Literal["min", "max"] = "min", patience: int | None = None, min_delta: float = 0.0):
        assert direction in ("min", "max"), direction
        assert patience is None or patience >= 1, patience
        assert min_delta >= 0, min_delta
        self.sign = 1.0 if direction == "min" else -1.0
        self.patience = patience
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_at = 0
        self.observed = 0
        self.reference: float | None = None
        self.without_progress = 0

    @property
    def should_stop(self) -> bool:
        """Whether `patience` observations in a row made no progress."""
        return self.patience is not None and self.without_progress >= self.patience

    def observe(self, value: float) -> bool:
        """Takes the next value; returns whether it is the best so far."""
        self.observed += 1
        if self._less(value, self.reference, self.min_delta):
            self.reference, self.without_progress = value, 0
        else:
            self.without_progress += 1
        if not self._less(value, self.best, 0.0):
            return False
        self.best, self.best_at = value, self.observed
        return True

    def _less(self, value: float, other: float | None, margin: float) -> bool:
        if math.isnan(value):
            return False
        return other is None or self.sign * value < self.sign * other - margin

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far, as plain numbers."""
        names = ("best", "best_at", "observed", "reference", "without_progress")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave."""
        for name in self.state_dict():
            setattr(self, name, state[name])
