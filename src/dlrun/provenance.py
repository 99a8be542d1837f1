"""Where a run came from: code version, package versions, device, command. Written into run.json."""

from __future__ import annotations

import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

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


def git_state() -> dict[str, Any] | None:
    """Commit and uncommitted changes of the repository in the current folder; None outside a repository."""
    commit = _git("rev-parse", "HEAD")
    if commit is None:
        return None
    diff = _git("diff", "--no-ext-diff", "--no-textconv", "HEAD") or ""
    return {"commit": commit.strip(), "dirty": bool(diff), "diff": diff[:200_000]}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
