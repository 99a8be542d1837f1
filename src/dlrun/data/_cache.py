"""Decoded copies of files that are slow to read, kept in the user's cache folder and mapped into memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.files import remove_stale

FORMAT = 1  # to be raised whenever decoding the same file gives other values
LARGEST = 2 << 30  # bytes of a copy
PAGE = 4096  # the bytes of the tensors begin at a multiple of it


def cached(
    sources: Sequence[Path], make: Callable[[], tuple[Tensor, ...]], enabled: bool = True, how: str = ""
) -> tuple[Tensor, ...]:
    """The uint8 tensors that `make` reads from `sources`, mapped from the copy of an earlier run where there is a sound one.

    A copy belongs to the paths, sizes and times of its sources; a stale or damaged one is made anew, and one that cannot
    be written is done without. The mapping is private: changes in place reach neither the file nor other processes.

    Args:
        sources: the files that `make` reads.
        make: reads and checks them.
        enabled: whether to keep a copy at all.
        how: what else the decoded values depend on.
    """
    known = _identity(sources, how) if enabled else None
    path = _file(sources, how) if known else None
    if path is None or known is None:
        return make()
    found = _load(path, known)
    if found is None:
        found = make()
        if sum(tensor.numel() for tensor in found) <= LARGEST:
            with contextlib.suppress(OSError):
                _write(path, known, found)
    return found


def _file(sources: Sequence[Path], how: str) -> Path | None:
    """Where the copy lies; None if the home folder is unknown."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlrun" / "decoded"
    except RuntimeError:
        return None
    names = "\0".join([how, *(os.path.abspath(source) for source in sources)])
    digest = hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()[:16]
    return folder / f"{sources[0].name[:60]}-{digest}.bin"


def _identity(sources: Sequence[Path], how: str) -> str | None:
    """A hash of what tells these sources from others, or from themselves when changed; None if one is missing."""
    try:
        found = [(os.path.abspath(path), path.stat()) for path in sources]
    except OSError:
        return None
    facts = [(path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in found]
    return hashlib.sha256(repr((FORMAT, how, facts)).encode()).hexdigest()


def _load(path: Path, known: str) -> tuple[Tensor, ...] | None:
    """The tensors of a copy whose header and length are right, else None."""
    try:
        with path.open("rb") as file:
            line = file.readline(PAGE)
            header = json.loads(line)
            shapes = [tuple(shape) for shape in header["shapes"]]
            sizes = [math.prod(shape) for shape in shapes]
            if header["sources"] != known or os.fstat(file.fileno()).st_size != PAGE + sum(sizes):
                return None
            whole = torch.from_numpy(np.memmap(file, np.uint8, "c", PAGE))  # private: copied where written to
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(part.view(shape) for part, shape in zip(whole.split(sizes), shapes, strict=True))


def _write(path: Path, known: str, tensors: tuple[Tensor, ...]) -> None:
    """Writes a copy that appears whole or not at all, even if the power fails."""
    assert all(tensor.dtype == torch.uint8 for tensor in tensors)
    header: dict[str, Any] = {"sources": known, "shapes": [list(tensor.shape) for tensor in tensors]}
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(path.parent, "*.tmp")
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("wb") as file:
            file.write((json.dumps(header) + "\n").encode().ljust(PAGE))
            for tensor in tensors:
                file.write(tensor.contiguous().numpy())  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
