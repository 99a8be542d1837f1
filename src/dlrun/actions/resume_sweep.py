"""`action=resume_sweep`: goes on with a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.registry import ConfigError


@ACTIONS.register("resume_sweep")
class ResumeSweep(Action):
    """Runs what is missing of the sweep in `sweep=<folder>`, and continues what was half done: the same as
    `dlrun resume=<folder>`, which the command line makes of it before a configuration is composed."""

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        raise ConfigError(
            "action: resume_sweep is chosen on the command line: dlrun action=resume_sweep sweep=<folder>"
        )
