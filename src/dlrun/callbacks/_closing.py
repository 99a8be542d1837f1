"""What is said when a run has ended: a table of its metrics, where things are, what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dlrun.callbacks._base import Run
from dlrun.registry import imports_of
from dlrun.shell import command, readable

if TYPE_CHECKING:
    from rich.table import Table


def metrics_table(results: Mapping[str, Any]) -> Table:
    """Metrics by split: training and validation of the last epoch, the test of the best checkpoint."""
    from rich.table import Table

    metrics, best = results["metrics"], results.get("best") or {}
    columns = {"train": "train, last epoch", "val": "val, last epoch", "test": "test, best epoch"}
    columns = {split: title for split, title in columns.items() if metrics.get(split)}
    title = results.get("status", "")
    if best:
        title += f"; best {best['monitor']} {best['value']:.4g} in epoch {best['epoch']}"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("metric")
    for column in columns.values():
        table.add_column(column, justify="right")
    for name in dict.fromkeys(name for split in columns for name in metrics[split]):
        table.add_row(name, *(_shown(metrics[split], name) for split in columns))
    return table


def what_next(run: Run, status: str) -> list[str]:
    """`curves:  tensorboard --logdir outputs/...` and the like."""
    folder = shlex.quote(readable(run.folder))
    again = f"{folder} trust_imports=true" if imports_of(run.config) else folder
    lines = {"folder": folder}
    if (run.config.get("callbacks") or {}).get("tensorboard"):
        lines["curves"] = f"{command('tensorboard')} --logdir {folder}"
    if status == "finished":
        lines["test again"] = f"{command('dlrun')} action=test run={again}"
        lines["predict"] = f"{command('dlrun')} action=predict run={again}"
    elif status == "failed":  # how to go on after an interruption is said by the command line, of a sweep as a whole
        lines["go on"] = f"{command('dlrun')} resume={again}"
    return [f"{what + ':':<12} {command}" for what, command in lines.items()]


def _shown(metrics: Mapping[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    return "not finite" if metrics[name] is None else f"{metrics[name]:.4g}"
