"""Checkpoints: written whole or not at all, proven readable, and loaded without running anything that is in them.

A checkpoint holds tensors and plain containers only, so `torch.load(weights_only=True)` reads it everywhere.
`last.pt` keeps its predecessor beside it (`previous.pt`): if `last.pt` is damaged later, a run goes on from there.

ConfigError
  Damaged        a checkpoint is missing or its bytes are not those that were written
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from dlrun.files import cannot_write, remove_stale, sync_folder
from dlrun.registry import ConfigError

FORMAT = 2
PREVIOUS = "previous.pt"
log = logging.getLogger("dlrun")
_proven: set[Path] = set()  # written, and read back, by this process


class Damaged(ConfigError):
    """A checkpoint is missing, truncated or garbled."""


def save(path: Path, state: dict[str, Any], keep_previous: bool = False) -> None:
    """Saves atomically: temporary file, fsync, read back and compared, renamed; the folder above `path.parent` must exist.

    Args:
        path: of the checkpoint; its folder is made.
        state: tensors and plain containers.
        keep_previous: what stands at `path` is kept as `previous.pt` beside it.

    Raises ConfigError, naming the file and the reason, if the disk is full or read-only or the folder is gone; what stood
    there before stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        remove_stale(path.parent, ".*.pt.*.tmp")
        try:
            _write(temporary, lambda file: torch.save({"format": FORMAT, **state}, file))
            if keep_previous and path.exists() and _is_whole(path):
                _keep(path, path.with_name(PREVIOUS))
            os.replace(temporary, path)
            _proven.add(path.absolute())
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(cannot_write(path, error)) from error


def load(path: Path, key: str = "resume", device: torch.device | str = "cpu") -> dict[str, Any]:
    """Loads a checkpoint of dlrun. Raises ConfigError, blaming `key`: Damaged if it is missing or damaged, else if it is of
    another format or holds anything but tensors and plain containers (nothing in it is ever run)."""
    if not path.is_file():
        raise Damaged(f"{key}: no checkpoint at {path}")
    _check_whole(path, key)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "weights_only" in str(error):
            raise ConfigError(
                f"{key}: checkpoint {path} holds more than tensors and plain values; it was not loaded"
            ) from error
        raise Damaged(f"{key}: checkpoint {path} is damaged; it was not loaded") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ConfigError(f"{key}: checkpoint {path} has format {found}; this dlrun reads format {FORMAT}")
    return state


def load_last(path: Path, key: str = "resume", device: torch.device | str = "cpu") -> dict[str, Any] | None:
    """The checkpoint at `path`, or the one before it, with a warning, if it is damaged; None where neither was ever written.
    Raises ConfigError as `load` does."""
    previous = path.with_name(PREVIOUS)
    if not path.exists() and not previous.exists():
        return None
    try:
        return load(path, key, device)
    except Damaged as error:
        if not previous.exists():
            raise
        state = load(previous, key, device)
        log.warning("%s; going on from the checkpoint before it, %s", error, previous)
        return state


def load_weights(model: torch.nn.Module, state: dict[str, Any], key: str = "run") -> None:
    """Loads `state["model"]` into the model. Raises ConfigError, naming the first misfit, if it is of another model."""
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError, AttributeError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{key}: the checkpoint is of another model ({lines[1 if len(lines) > 1 else 0]})") from error


class _Summed:
    """Passes on what is written to a file and keeps its checksum, and the first `error`: torch.save would hide it behind one of
    its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sum = file, 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.sum = zlib.crc32(data, self.sum)
        left = memoryview(data)
        try:
            while (
                left and self.error is None
            ):  # an unbuffered write may stop short, such as just before the disk is full
                left = left[self.file.write(left) :]
        except OSError as error:
            self.error = error
        return len(data)

    def flush(self) -> None:
        self.file.flush()


def _write(path: Path, fill: Callable[[Any], None]) -> None:
    """Writes a file, waits until it is on the disk and reads it back. Raises OSError."""
    with open(path, "wb", buffering=0) as file:  # unbuffered: a full disk shows at the write, not at closing
        summed = _Summed(file)
        try:
            fill(summed)
        except RuntimeError as error:  # torch.save hides a second Ctrl-C behind an error of its own
            if isinstance(error.__context__, KeyboardInterrupt):
                raise error.__context__ from None
            raise
        if summed.error:
            raise summed.error
        os.fsync(file.fileno())
    read = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            read = zlib.crc32(chunk, read)
    if read != summed.sum:
        raise OSError(None, "what was read back is not what was written", str(path))


def _keep(path: Path, previous: Path) -> None:
    """Gives the file at `path` the name `previous` as well, so that at no moment `path` is missing."""
    temporary = path.with_name(f".{previous.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        os.replace(path, previous)
    else:
        os.replace(temporary, previous)
        temporary.unlink(
            missing_ok=True
        )  # which stays where both names are of one file: a save was killed at this point


def _is_whole(path: Path) -> bool:
    """Whether the file is not damaged; one that this process wrote, and read back, is not looked at again."""
    if path.absolute() in _proven:
        return True
    try:
        _check_whole(path, "")
    except Damaged:
        return False
    return True


def _check_whole(path: Path, key: str) -> None:
    """Compares the checksums inside the file with its content, which `torch.load` does not do. Raises Damaged."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            if file.read(2)[:1] == b"\x80":  # a bare pickle: torch.load says what is wrong with it
                return
        raise Damaged(f"{key}: checkpoint {path} is damaged; it was not loaded")
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except Exception as error:  # a garbled directory makes zipfile fail in many ways
        raise Damaged(f"{key}: checkpoint {path} is damaged; it was not loaded") from error
    if bad is not None:
        raise Damaged(f"{key}: checkpoint {path} is damaged (in '{bad}'); it was not loaded")
