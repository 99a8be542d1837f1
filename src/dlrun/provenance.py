"""Where a run came from: code version, package versions, device, command. Written into run.json."""

from __future__ import annotations

import platform
import sys
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dlrun.code_version import git_state
from dlrun.device import describe_device

PACKAGES = ("dlrun", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "scikit-learn")


def describe(device: torch.device, seed: int, split_hashes: dict[str, str]) -> dict[str, Any]:
    """Everything needed to repeat a run, as plain containers."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "git": git_state(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "split_hashes": split_hashes,
    }


@cache  # for the many runs of a sweep's worker
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
