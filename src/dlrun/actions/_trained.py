"""Reading a trained run back: the parts of its experiment with the weights of its best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlrun import checkpoint, rundir
from dlrun.build import Parts, build_parts, check
from dlrun.registry import ConfigError


def load_trained(config: dict[str, Any], folder: Path) -> Parts:
    """The data, task, loss and model of a run, with the weights of its best (or, failing that, last) checkpoint."""
    if config["run"] is None:
        raise ConfigError(f"run: {config['action']['name']} needs the folder of a run; give run=<folder>")
    check(config)
    path = folder / rundir.BEST
    state = checkpoint.load(path if path.is_file() else folder / rundir.LAST, "run")
    parts = build_parts(config, state["data"])
    checkpoint.load_weights(parts.model, state)
    parts.model.eval()
    return parts
