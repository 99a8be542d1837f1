"""Where weights come from: the folder of a run, one of its checkpoints, or a file with a state dict of PyTorch."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlrun import checkpoint, rundir
from dlrun.registry import ConfigError

KEY = "transfer.source"
INSIDE = ("model", "state_dict", "model_state_dict")  # where a file keeps the state dict beside other things
WRAPPERS = ("_orig_mod.", "module.")  # what torch.compile and data-parallel training put before each name


def weights_file(source: str) -> Path:
    """The file with the weights: of a run its best checkpoint, else its last. Raises ConfigError if none is there."""
    path = Path(os.path.expanduser(source))
    if path.is_file():
        return path
    if not path.is_dir():
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
        hint = f"; did you mean '{path.parent / near[0]}'?" if near else ""
        raise ConfigError(f"{KEY}: no such file or folder '{source}'{hint}")
    for name in (rundir.BEST, rundir.LAST, rundir.LAST.with_name(checkpoint.PREVIOUS)):
        if (path / name).is_file():
            return path / name
    if (path / "sweep.yaml").is_file():
        raise ConfigError(
            f"{KEY}: '{source}' is the folder of a sweep; give that of one of its runs, such as {path / '0'}"
        )
    raise ConfigError(f"{KEY}: no checkpoint in '{source}': give the folder of a run that was trained, or a file")


def run_of(file: Path) -> Path | None:
    """The folder of the run that a checkpoint belongs to; None for another file."""
    folder = file.absolute().parent.parent
    return folder if file.parent.name == rundir.BEST.parent.name and rundir.is_run(folder) else None


def digest(file: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal digits. Raises ConfigError if it cannot be read."""
    sha = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 20):
                sha.update(chunk)
    except OSError as error:
        raise ConfigError(f"{KEY}: cannot read '{file}' ({error.strerror})") from error
    return sha.hexdigest()


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Nothing that is in it is run. Raises ConfigError if there are none."""
    state: Any = _load(file)
    for name in INSIDE:
        if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
            state = state[name]
            break
    if not isinstance(state, Mapping) or not state:
        raise ConfigError(
            f"{KEY}: '{file}' holds no state dict (names and tensors), as torch.save(model.state_dict()) does"
        )
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ConfigError(f"{KEY}: '{file}' is no state dict: {str(name)[:80]!r} is a {type(tensor).__name__}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ConfigError(f"{KEY}: '{name}' of '{file}' holds values that are not finite")
    for wrapper in WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): tensor for name, tensor in state.items()}
    return dict(state)


def _load(file: Path) -> Any:
    try:
        return checkpoint.load(file, KEY)
    except checkpoint.Damaged:
        raise
    except ConfigError:  # none of dlrun's: its bytes are whole, as far as they tell
        pass
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of whatever kind, depending on what is in the file
        raise ConfigError(
            f"{KEY}: '{file}' holds more than tensors and plain values; it was not loaded; save the weights alone by "
            "torch.save(model.state_dict(), ...)"
        ) from error
