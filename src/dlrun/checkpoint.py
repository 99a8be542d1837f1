"""Checkpoints: written whole or not at all, and loaded without running anything that is in them.

A checkpoint holds tensors and plain containers only, so `torch.load(weights_only=True)` reads it everywhere.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from dlrun.registry import ConfigError

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Saves atomically: temporary file, fsync, rename. Raises OSError if the disk is full or read-only, and leaves the
    previous checkpoint as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, key: str = "resume", device: torch.device | str = "cpu") -> dict[str, Any]:
    """Loads a checkpoint of dlrun. Raises ConfigError, blaming `key`, if it is missing, damaged, of another format, or
    holds anything but tensors and plain containers (nothing in it is ever run)."""
    if not path.is_file():
        raise ConfigError(f"{key}: no checkpoint at {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        reason = "holds more than tensors and plain values" if "weights_only" in str(error) else "is damaged"
        raise ConfigError(f"{key}: checkpoint {path} {reason}; it was not loaded") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else None
        raise ConfigError(f"{key}: checkpoint {path} has format {found}; this dlrun reads format {FORMAT}")
    return state


def load_weights(model: torch.nn.Module, state: dict[str, Any], key: str = "run") -> None:
    """Loads `state["model"]` into the model. Raises ConfigError, naming the first misfit, if it is of another model."""
    try:
        model.load_state_dict(state["model"])
    except (RuntimeError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(
            f"{key}: the checkpoint is of another model ({lines[1] if len(lines) > 1 else lines[0]})"
        ) from error
