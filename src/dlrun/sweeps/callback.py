"""What happens around a run or a sweep, whatever launcher runs it: Hydra calls these hooks in the main process."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dlrun import rundir

_failed = 0


def failed_runs() -> int:
    """How many runs of the sweep that just ended did not finish; 0 where there was none."""
    global _failed
    failed, _failed = _failed, 0
    return failed


class SweepCallback(Callback):
    """Makes the folders that Hydra would make; prints and writes the leaderboard of a sweep when it ends."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(
            OmegaConfBaseException
        ):  # raised again by Hydra itself, which only warns of one from here
            rundir.create(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(OmegaConfBaseException):
            rundir.create(config.hydra.sweep.dir)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        global _failed
        from dlrun.sweeps.job import failures
        from dlrun.sweeps.leaderboard import Leaderboard

        board = Leaderboard.read(Path(str(config.hydra.sweep.dir)))
        board.write_csv()
        board.print()
        _failed = max(board.failed, failures())
