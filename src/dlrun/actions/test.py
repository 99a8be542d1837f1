"""Evaluates a trained run again."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.actions._trained import load_trained
from dlrun.device import autocast
from dlrun.metrics._collection import MetricCollection
from dlrun.streams import Stream


@ACTIONS.register("test")
class Test(Action):
    """Evaluates the best checkpoint of a run on one split and prints its loss and metrics; writes nothing.

    Args:
        split: train, val or test.
    """

    def __init__(self, *, split: Literal["train", "val", "test"] = "test") -> None:
        self.split = split

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        parts = load_trained(config, folder)
        metrics = MetricCollection(parts.loss, parts.task.target())
        total, count = 0.0, 0
        with torch.inference_mode(), autocast(config["trainer"]["precision"], parts.device):
            for batch in parts.data.split(self.split):
                result = parts.task(parts.model, batch, Stream(0, "task"))
                metrics.update(result.outputs.float(), result.targets)
                total, count = total + float(result.loss) * len(batch.indices), count + len(batch.indices)
        table = Table(title=escape(f"{folder} on {self.split} ({count} samples)"), title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        for name, value in {"loss": total / max(1, count), **metrics.compute()}.items():
            table.add_row(name, f"{value:.6g}")
        Console().print(table)
        return None
