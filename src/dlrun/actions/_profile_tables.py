"""What `action=profile` prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.actions._variants import OTHER, RESULTS
from dlrun.callbacks._closing import command, readable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SMALL = "at most the last bits"
SCATTER = 1.1  # from which on a machine is called busy
REAL = {RESULTS: "the results: compare them", OTHER: "the experiment: its learning rate may no longer fit"}


def console() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console(highlight=False)


def start_up_table(seconds: Mapping[str, float]) -> Table:
    """Seconds by what was done before the first step, and all of them; what came after it last."""
    table = _table("start-up", "what", "seconds", "in all")
    total = 0.0
    for name, value in seconds.items():
        total += value
        table.add_row(name, f"{value:.3f}", f"{total:.3f}")
    return table


def epoch_table(epoch: Mapping[str, Any]) -> Table:
    """Where an epoch goes."""
    measured, steps = epoch["steps_timed"], epoch["steps"]
    part = f"; from {measured:,} of them" if measured < steps - 1 else ""
    table = _table(f"an epoch of {steps:,} steps{part}", "phase", "seconds", "share", "per step")
    for name, phase in epoch["phases"].items():
        table.add_row(name, f"{phase['seconds']:.3f}", f"{phase['share']:.1%}", duration(phase["step_s"]))
    whole = sum(phase["seconds"] for phase in epoch["phases"].values())
    table.add_row("in all", f"{whole:.3f}", "100.0%", duration(whole / steps))
    return table


def operators_table(operators: Iterable[Mapping[str, Any]]) -> Table:
    """The operators with most time of their own."""
    table = _table("operators of a step", "operator", "calls", "time", "share")
    for row in operators:
        table.add_row(row["name"][:60], f"{row['calls']:g}", duration(row["seconds"]), f"{row['share']:.1%}")
    return table


def variants_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """How fast each variant is."""
    columns = ("setting", "samples/s", "speed", "interval", "changes")
    table = _table("one setting changed, in turns with the configuration as given (90 % intervals)", *columns)
    for row in rows:
        if "why" in row:
            table.add_row(row["setting"], "", "", "left out", row["why"])
            continue
        speed = f"[bold]{row['speed']:.2f}[/bold]" if row["gain"] else f"{row['speed']:.2f}"
        interval = f"{row['low']:.2f}-{row['high']:.2f}"
        table.add_row(row["setting"], f"{row['samples_per_s']:,.0f}", speed, interval, row["changes"])
    return table


def suggestions(rows: Iterable[Mapping[str, Any]], words: Sequence[str]) -> list[dict[str, Any]]:
    """Commands that are faster, by how much more they change: `command`, `settings`, `speed` of each alone, `changes`.

    `words`: the command line as given. Of several values of one setting the fastest is taken.
    """
    best: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        key = row["setting"].partition("=")[0]
        if row.get("gain") and (key not in best or row["speed"] > best[key]["speed"]):
            best[key] = row
    found = []
    for changes in ("", RESULTS, OTHER):
        chosen = [row for row in best.values() if (row["changes"] if row["changes"] in REAL else "") == changes]
        if chosen:
            settings = [row["setting"] for row in sorted(chosen, key=lambda row: -row["speed"])]
            found.append(
                {
                    "command": command_line(words, settings),
                    "settings": settings,
                    "speed": {row["setting"]: row["speed"] for row in chosen},
                    "changes": changes or SMALL,
                }
            )
    return found


def command_line(words: Sequence[str], settings: Sequence[str]) -> str:
    """The command that trains with these settings in place of those of `words`."""
    new = {setting.partition("=")[0] for setting in settings}
    kept = [w for w in words if (key := w.partition("=")[0].lstrip("+")) not in new and key.split(".")[0] != "action"]
    return " ".join([command("dlrun"), *map(shlex.quote, (*kept, *settings))])


def advice(found: Sequence[Mapping[str, Any]], again: Mapping[str, Any]) -> list[str]:
    """The suggestions in words; `again`: the row of the configuration compared with itself."""
    lines = []
    if max(again["high"], 1 / again["low"]) > SCATTER:
        lines = [
            f"the same settings differ by a factor of {again['low']:.2f} to {again['high']:.2f}: something else uses this "
            "machine; repeat when it is quiet"
        ]
    if not found:
        return [*lines, "nothing worth changing: no gain of 3 % or more is certain here"]
    for one in found:
        gains = [
            f"{setting} is {one['speed'][setting]:.2f} times as fast{_part(setting)}" for setting in one["settings"]
        ]
        alone = " (measured one at a time)" if len(gains) > 1 else ""
        lines += [
            f"{', '.join(gains)}{alone}; changes {REAL.get(one['changes'], one['changes'])}:",
            f"  {one['command']}",
        ]
    return lines


def _part(setting: str) -> str:
    return " in validation" if setting.startswith("data.evaluation") else ""


def where(path: Path) -> str:
    """How to open the trace."""
    return f"trace of some steps: {readable(path)} (open it in https://ui.perfetto.dev or chrome://tracing)"


def duration(seconds: float) -> str:
    """Such as `12.3 ms` or `4.5 us`."""
    unit, size = next((u for u in (("s", 1.0), ("ms", 1e-3)) if seconds >= u[1]), ("us", 1e-6))
    return f"{seconds / size:.3g} {unit}" if seconds < 999 * size else f"{seconds / size:,.0f} {unit}"


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold cyan",
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, column in enumerate(columns):
        left = number == 0 or column == "changes"
        table.add_column(column, justify="left" if left else "right", overflow="fold", no_wrap=number == 0)
    return table
