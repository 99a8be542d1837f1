"""Where things are and what they are called. Imports neither torch nor Hydra, so that `--help` stays quick."""

from __future__ import annotations

import os
from pathlib import Path

GROUPS = (
    "task",
    "loss",
    "optimizer",
    "scheduler",
    "callbacks",
    "action",
    "trainer",
    "transfer",
    "data",
    "model",
    "regularization",
)
"""Configuration groups that build something, in the order of the defaults list (see configs/config.yaml)."""

MAPPING_GROUPS = ("callbacks", "regularization")
"""Groups that compose as a mapping of entries, so that several options can be chosen at once."""

SPLITTING = (
    "data.split_seed", "data.val_fraction", "data.test_fraction", "data.split", "data.folds", "data.fold",
)  # fmt: skip
"""Settings that decide which samples are tested."""

TRAINING_ACTIONS = ("train",)
"""Actions whose folder is a run: it can be resumed, and swept over."""

RUN_ACTIONS = (*TRAINING_ACTIONS, "verify_resume", "profile")
"""Actions that make a folder of their own; the others read one or none."""


def config_dir() -> Path:
    """The folder with the YAML files: inside an installed wheel, or at the top of a checkout."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "configs"


def catalogue_file() -> Path:
    """The generated list of every option and setting, shipped with the package so that `action=list` needs no torch."""
    return Path(__file__).parent / "catalogue.json"


def data_root() -> Path:
    """Where data sets live unless `data.root` says otherwise: `DLRUN_DATA_DIR`, else a per-user cache."""
    if given := os.environ.get("DLRUN_DATA_DIR"):
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "dlrun" / "data"


def options(group: str) -> list[str]:
    """Names of the YAML options of a group, sorted; files that begin with `_` are shared pieces, not options."""
    return sorted(p.stem for p in (config_dir() / group).glob("*.yaml") if not p.stem.startswith("_"))
