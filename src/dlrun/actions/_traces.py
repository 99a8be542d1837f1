"""Traces of training processes, step by step (see `_stopped`), and where two runs first differ."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NOT_NUMBERS = ("step", "split", "weights")


@dataclass
class Trace:
    """What one process did.

    Attributes:
        start: the step of the checkpoint that it went on from; 0 for none.
        every: it looked at the weights every so many steps.
        steps_per_epoch: of the run.
        lines: by (step, 0) for a step and (step, 1), (step, 2) ... for the evaluations after it.
    """

    start: int = 0
    every: int = 1
    steps_per_epoch: int = 1
    lines: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """The last step."""
        return max((step for step, _ in self.lines), default=self.start)


def read_trace(path: Path) -> Trace:
    """The trace in a file; an empty one if the process did not come to training."""
    lines = (
        [json.loads(line) for line in path.read_bytes().splitlines(True) if line.endswith(b"\n")]
        if path.exists()
        else []
    )
    if not lines:
        return Trace()
    trace = Trace(lines[0]["start"], lines[0]["every"], lines[0]["steps_per_epoch"])
    for line in lines[1:]:
        order = ["step", "train", "val", "test"].index(line.get("split", "step"))
        trace.lines[line["step"], order] = line
    return trace


def first_difference(whole: Trace, processes: Sequence[Trace]) -> str | None:
    """Where any process of the resumed run first did otherwise than the whole run; None if none did."""
    found = [
        (at, number)
        for number, process in enumerate(processes)
        for at, line in process.lines.items()
        if whole.lines.get(at) != line
    ]
    missing = [at for at in whole.lines if not any(at in process.lines for process in processes)]
    if not found:
        return f"{_place(min(missing), whole)}: missing in the resumed run" if missing else None
    at, number = min(found)
    what = _describe(whole, at, processes[number])
    if number == 0:
        return f"{what}; before any stop: the configuration does not repeat itself (see trainer.deterministic, trainer.threads)"
    return f"{what}; the process had gone on from step {processes[number].start}"


def _describe(whole: Trace, at: tuple[int, int], process: Trace) -> str:
    place, line, other = _place(at, process), whole.lines.get(at), process.lines[at]
    if line is None:
        return f"{place}: not in the whole run"
    for name in dict.fromkeys([*line, *other]):
        if name not in NOT_NUMBERS and line.get(name) != other.get(name):
            return f"{place}, {name} {_number(line, name)} in the whole run, {_number(other, name)} in the resumed one"
    weights, others = line.get("weights", {}), other.get("weights", {})
    names = [name for name in dict.fromkeys([*weights, *others]) if weights.get(name) != others.get(name)]
    looked = f", looked at every {process.every} steps" if process.every > 1 else ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{place}, weights '{names[0]}'{more}{looked} ({_loss_until(whole, at, process)})"


def _loss_until(whole: Trace, at: tuple[int, int], process: Trace) -> str:
    """How long the losses stayed equal, which hides that the weights do not."""
    for later in sorted(key for key in process.lines if key > at and key[1] == 0):
        if whole.lines.get(later, {}).get("loss") != process.lines[later]["loss"]:
            return f"loss equal until step {later[0]}"
    return "loss equal in all steps that follow"


def _place(at: tuple[int, int], trace: Trace) -> str:
    step, order = at
    epoch = (step - 1) // trace.steps_per_epoch + 1
    kind = ("", "training metrics of epoch {} after ", "validation of epoch {} after ", "test after ")[order]
    return f"{kind.format(epoch)}step {step}" + ("" if order else f" (epoch {epoch})")


def _number(line: Mapping[str, Any], name: str) -> str:
    return f"{float.fromhex(line[name]):.9g}" if name in line else "missing"
