"""How many workers a machine takes."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RESERVED_MIB = 1500.0  # of a device for every process: its CUDA context and kernels
MARGIN = 1.2  # of the measured peak: what the allocator holds besides
WORKER_BYTES = 3 << 29  # of main memory that a worker is taken to need


@dataclass(frozen=True)
class Settings:
    """The settings of `hydra/launcher=dlrun`; `launcher.workers=4` on the command line means `hydra.launcher.workers=4`.

    Attributes:
        workers: processes that run jobs at once; auto: one for each core, or each CUDA device, or several on a device if they
            fit by the memory that was measured.
        threads: CPU threads of each; auto: the cores divided by the workers. `trainer.threads` beats it. Another number
            changes the last bits of the results.
        timeout: seconds after which a job is taken to hang and is ended; null: never.
        stack: train jobs that differ only in values as one stacked model; see docs/stacking.md.
        stack_size: members of a stacked model at most.
        fail_fast: end the sweep after the first run that fails.
    """

    workers: int | Literal["auto"] = "auto"
    threads: int | Literal["auto"] = "auto"
    timeout: float | None = None
    stack: bool = False
    stack_size: int = 64
    fail_fast: bool = False


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def packed(peak_mib: float, total_mib: float, cores: int, devices: int) -> int:
    """How many runs fit on a device of `total_mib` at once, of which each takes `peak_mib` of tensors: at least 1, and no
    more than there are cores for."""
    fit = int(total_mib // (peak_mib * MARGIN + RESERVED_MIB))
    return max(1, min(fit, cores // max(1, devices)))


def free_memory() -> int:
    """Bytes of main memory that are free, or easily made so."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return 1 << 62
