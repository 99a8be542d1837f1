"""Which code runs: dlrun's version, and the commit and uncommitted changes of the repository in the current folder."""

from __future__ import annotations

import hashlib
import subprocess
from typing import Any


def code_version() -> dict[str, str]:
    """`dlrun`, and in a repository `commit` and, where something is not committed, `changes` (a hash of it)."""
    from dlrun import __version__

    found = {"dlrun": __version__}
    if state := git_state():
        found["commit"] = state["commit"]
        if state["dirty"]:
            found["changes"] = hashlib.sha256(state["diff"].encode()).hexdigest()[:12]
    return found


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
