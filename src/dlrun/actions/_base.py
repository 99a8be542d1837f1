"""What an action is: something that dlrun can do with an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Action:
    """Called once with the plain, unchecked configuration. Exceptions carry the exit code (see `dlrun.cli`)."""

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        """`folder`: of the run that is made or read. Returns the value of `trainer.monitor` at the best epoch for sweepers,
        or None."""
        raise NotImplementedError
