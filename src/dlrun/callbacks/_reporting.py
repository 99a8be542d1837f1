"""A run that tells the sweep it belongs to of every validation, and ends where the sweep has seen enough of it.

Exception
  Pruned        ends a run early; its checkpoint is written, its test set unread
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dlrun.callbacks._base import Callback, Run


class Pruned(Exception):
    """Others do better than this run did at the same epoch."""


class Reporter(Callback):
    """Tells of each validation at the end of its epoch, when the checkpoint has been written.

    It is no observer like the others: it may end the run. The numbers up to there are those of any other run.

    Args:
        tell: takes the epoch and the metrics of training and validation by full name (`val/loss`); returns whether the run
            shall end.
    """

    def __init__(self, tell: Callable[[int, dict[str, float]], bool]) -> None:
        self._tell = tell
        self._validated = False

    def on_evaluation(self, run: Run, split: str, metrics: Mapping[str, float]) -> None:
        self._validated |= split == "val"

    def on_epoch_end(self, run: Run) -> None:
        """Raises Pruned."""
        if not self._validated:
            return
        self._validated = False
        metrics = {f"{split}/{name}": value for split, values in run.history.items() for name, value in values.items()}
        if self._tell(run.epoch, metrics):
            raise Pruned(f"pruned after epoch {run.epoch}")
