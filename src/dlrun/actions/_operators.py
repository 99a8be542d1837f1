"""A trace of some training steps, and the operators that take most of their time."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile, schedule

from dlrun.actions._phases import annotate, watched
from dlrun.actions._turns import Steps
from dlrun.registry import ConfigError

WARM, TRACED, TOP = 3, 5, 10
SLOW_S = 1.0  # steps longer than this: only one is traced


def trace(steps: Steps, path: Path) -> list[dict[str, Any]]:
    """Traces some steps and writes them, whole or not at all, in the format of chrome://tracing.

    Returns the operators with most time of their own, at most 10: `name`, `calls` and `seconds` in a step, and `share`. On
    CUDA the seconds are those of the device. Raises ConfigError if the trace cannot be written.
    """
    cuda = steps.trainer.run.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else PyTorch's profiler tells what it does not find
    steps.turn()
    start = time.perf_counter()
    steps.turn()
    slow = time.perf_counter() - start > SLOW_S * (steps.warm + steps.steps)
    warm, traced = (1, 1) if slow else (WARM, TRACED)
    steps.warm, steps.steps = warm, traced
    plan = schedule(wait=0, warmup=warm, active=traced, repeat=1)
    with watched(steps.trainer, annotate), profile(activities=activities, schedule=plan) as profiler:
        steps.between = profiler.step
        steps.turn()
        steps.between = None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        profiler.export_chrome_trace(str(temporary))
        if not _is_whole(temporary):
            raise ConfigError(f"cannot write {path}: the disk may be full; action.trace=false goes without it")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return top_operators(profiler.key_averages(), traced, cuda)


def _is_whole(path: Path) -> bool:
    """Whether a file ends as JSON does: the profiler does not say when it could not write."""
    try:
        with path.open("rb") as file:
            file.seek(-min(64, path.stat().st_size), os.SEEK_END)
            return file.read().rstrip().endswith(b"}")
    except OSError:
        return False


def top_operators(events: Any, steps: int, cuda: bool) -> list[dict[str, Any]]:
    """See `trace`; `events`: averages by name of a profile of `steps` steps."""
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    operators = [event for event in events if "::" in event.key or cuda]  # the others are ranges that hold them
    whole = sum(getattr(event, name) for event in operators)
    operators.sort(key=lambda event: getattr(event, name), reverse=True)
    return [
        {
            "name": event.key,
            "calls": event.count / steps,
            "seconds": getattr(event, name) / 1e6 / steps,
            "share": getattr(event, name) / whole if whole else 0.0,
        }
        for event in operators[:TOP]
        if getattr(event, name)
    ]
