"""Reading a trained run back: the parts of its experiment with the weights of its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from dlrun import checkpoint, rundir
from dlrun.build import Parts, build_parts, check, without_auto
from dlrun.registry import ConfigError


def load_trained(config: dict[str, Any], folder: Path) -> Parts:
    """The data, task, loss and model of a run, with the weights of its best (or, failing that, last) checkpoint. In `config`
    every `auto` is replaced by what it stands for."""
    if config["run"] is None:
        raise ConfigError(f"run: {config['action']['name']} needs the folder of a run; give run=<folder>")
    check(config)
    best = folder / rundir.BEST
    state = checkpoint.load(best, "run") if best.is_file() else checkpoint.load_last(folder / rundir.LAST, "run")
    if state is None and (rundir.read_results(folder) or {}).get("status") == "finished":
        raise ConfigError(f"run: the checkpoints in {best.parent} are gone; restore them from a copy of the run")
    if state is None:
        raise ConfigError(f"run: no checkpoint in {best.parent}: nothing was trained; go on with it by resume={folder}")
    if "data" not in state:
        raise ConfigError(f"run: the checkpoint in {best.parent} is damaged (it has no 'data')")
    parts = build_parts(config, state["data"])
    config.update(without_auto(config, parts))
    if config["trainer"]["memory_format"] == "channels_last":  # as in training: the last bits hang on it
        parts.model.to(memory_format=torch.channels_last)
    checkpoint.load_weights(parts.model, state)
    parts.model.eval()
    return parts
