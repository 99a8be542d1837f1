"""How much memory is free for data on a device, beside the model that is to be trained there."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import torch

UNKNOWN = 4 << 30  # taken for free where the system does not say how much is
SHARE = 0.25  # of what is free: other programs need memory too, and so does a model of unknown size
BESIDE_MODEL = 0.9  # of what is free on a CUDA device once the model's share is known


class Room:
    """The memory of a device that data may take; measured once, before the first of them is placed.

    Args:
        device: where the data are to lie.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.reserved: int | None = None  # bytes of the model and its training; None: unknown
        self._left: float | None = None
        self._refused = False

    def left(self) -> int:
        """Bytes that may still be taken."""
        if self._left is None:
            free, reserved = free_memory(self.device), self.reserved or 0
            known = self.device.type == "cuda" and self.reserved is not None
            self._left = BESIDE_MODEL * free - reserved if known else SHARE * (free - reserved)
        return max(0, int(self._left))

    def forget(self) -> None:
        """Measures anew when next asked: what was admitted has been freed."""
        self._left = None

    def admit(self, size: int) -> bool:
        """Whether `size` bytes fit, which then count as taken; says so, once, where they do not."""
        left = self.left()
        if size <= left:
            self._left = left - size
            return True
        if not self._refused:
            self._refused = True
            what = "GPU memory" if self.device.type == "cuda" else "memory"
            text = "data: %s do not fit beside the model in %s of %s: streaming"
            logging.getLogger("dlrun").info(text, _gib(size), _gib(left), what)
        return False


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device, or in the machine within the limits of this process's control groups."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch's to give again
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return min([_available(), *_groups()])


def _available() -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return UNKNOWN


def _groups() -> Iterator[int]:
    """What each control group around this process leaves free, the page cache that it can give up included."""
    names = ["/"]
    with contextlib.suppress(OSError):
        names += [line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if "::" in line]
    for name in {str(above) for given in names for above in (Path(given), *Path(given).parents)}:
        folder = Path("/sys/fs/cgroup") / name.lstrip("/")
        yield from _group(folder / "memory.max", folder / "memory.current", folder / "memory.stat", "inactive_file ")
    old = Path("/sys/fs/cgroup/memory")
    limit, usage = old / "memory.limit_in_bytes", old / "memory.usage_in_bytes"
    yield from _group(limit, usage, old / "memory.stat", "total_inactive_file ")


def _group(limit: Path, usage: Path, stat: Path, cache: str) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):  # absent, or "max"
        allowed, used = int(limit.read_text()), int(usage.read_text())
        idle = sum(int(line.split()[1]) for line in stat.read_text().splitlines() if line.startswith(cache))
        yield max(0, allowed - used + idle)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.3g} GiB"
