"""What happens around a run or a sweep, whatever launcher runs it: Hydra calls these hooks in the main process."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dlrun import rundir
from dlrun.sweeps import sweep


class SweepCallback(Callback):
    """Makes the folders that Hydra would make; begins and finishes a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(
            OmegaConfBaseException
        ):  # raised again by Hydra itself, which only warns of one from here
            rundir.create(config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with contextlib.suppress(OmegaConfBaseException):
            given: Any = OmegaConf.to_container(
                config.hydra.overrides, resolve=False
            )  # each run resolves them for itself
            # Launchers compose the configuration of a run anew, in other processes, which may have another current folder.
            place = os.path.abspath(str(config.hydra.sweep.dir))
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={_quoted(place)}")
            act = sweep.look if config.get("dry_run") is True else sweep.begin
            act(Path(str(config.hydra.sweep.dir)), given["task"], given["hydra"])

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if config.get("dry_run") is not True:
            sweep.finish(Path(str(config.hydra.sweep.dir)))


def _quoted(folder: str) -> str:
    """In quotes, in which Hydra takes every character for itself, and with every "${" escaped."""
    return "'" + folder.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${") + "'"
