"""What the files of a run are called, and what of a configuration is saved."""

from __future__ import annotations

from pathlib import Path

from dlrun.settings import GROUPS

CONFIG = Path(".hydra") / "config.yaml"
OVERRIDES = Path(".hydra") / "overrides.yaml"  # of a job of a sweep: what it was given on the command line
RESULTS = "results.json"
LAST = Path("checkpoints") / "last.pt"
BEST = Path("checkpoints") / "best.pt"

SAVED = (*GROUPS, "seed", "device")
"""What a run is made of. The other settings (`resume`, `run`, `debug`, `trust_imports`) belong to a command: they are neither
written into a run's configuration nor read from one."""
