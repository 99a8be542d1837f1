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
from numpy.typing import NDArray
from torch import Tensor

from dlrun.files import remove_stale

FORMAT = 2  # to be raised whenever decoding the same file gives other values
LARGEST = 2 << 30  # bytes of a copy
KEPT = 8 << 30  # bytes of all copies; those not used for longest go first
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
            bytes_ = np.memmap(file, np.uint8, "c", PAGE)  # private: copied where written to
        parts = np.split(bytes_, np.cumsum(sizes)[:-1])
        if header["sums"] != list(map(_sum, parts)):
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # used now
        whole = torch.from_numpy(bytes_)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return tuple(part.view(shape) for part, shape in zip(whole.split(sizes), shapes, strict=True))


def _write(path: Path, known: str, tensors: tuple[Tensor, ...]) -> None:
    """Writes a copy that appears whole or not at all, even if the power fails."""
    assert all(tensor.dtype == torch.uint8 for tensor in tensors)
    header: dict[str, Any] = {"sources": known, "shapes": [list(tensor.shape) for tensor in tensors]}
    arrays = [tensor.contiguous().numpy().reshape(-1) for tensor in tensors]
    header["sums"] = list(map(_sum, arrays))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the sources may be nobody else's to read
    remove_stale(path.parent, "*.tmp")
    part = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write((json.dumps(header) + "\n").encode().ljust(PAGE))
            for array in arrays:
                file.write(array.data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _forget_old(path.parent)


def _sum(values: NDArray[np.uint8]) -> int:
    """The sum of all bytes in words of eight: found in milliseconds, and another one where a byte has changed."""
    words = values[: len(values) // 8 * 8].view(np.uint64)
    return (int(words.sum(dtype=np.uint64)) + int(values[len(words) * 8 :].sum())) % 2**64


def _forget_old(folder: Path) -> None:
    with contextlib.suppress(OSError):
        found = sorted((s.st_mtime_ns, s.st_size, path) for path in folder.glob("*.bin") for s in [path.stat()])
        left = sum(size for _, size, _ in found)
        for _, size, path in found:
            if left > KEPT:
                path.unlink(missing_ok=True)  # who has mapped it still reads it
                left -= size
