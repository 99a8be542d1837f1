"""One line of JSON per evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dlrun.callbacks import CALLBACKS
from dlrun.callbacks._base import Callback, Run
from dlrun.callbacks._files import GrowingFile, continued

NAME = "metrics.jsonl"


@CALLBACKS.register("metrics_file")
class MetricsFile(Callback):
    """Appends a line to `metrics.jsonl` in the run's folder at every evaluation.

    A line is `{"epoch", "step", "split", "loss", ...}`; a value that is not finite is written as null, so that every
    line is standard JSON. The line of the test set bears the epoch and step of the best checkpoint, on which it was
    measured. A resumed run cuts off what was written after its checkpoint and goes on in the same file.
    """

    def __init__(self) -> None:
        self._file: GrowingFile | None = None
        self._length: int | None = None

    def on_fit_start(self, run: Run) -> None:
        length = None if self._length is None else continued(run.folder / NAME, self._length, _whole_lines)
        self._file = GrowingFile(run.folder, NAME, length)

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        if self._file is None:
            return
        at = run.best if split == "test" else {}
        line: dict[str, Any] = {"epoch": at.get("epoch", run.epoch), "step": at.get("step", run.step), "split": split}
        line |= {name: _finite(value) for name, value in metrics.items()}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def on_run_end(self, run: Run, results: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.close()

    def state_dict(self) -> dict[str, Any]:
        return {"length": self._file.saved_length()} if self._file is not None else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._length = state.get("length")


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _whole_lines(content: bytes) -> int:
    return content.rfind(b"\n") + 1
