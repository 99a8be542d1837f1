"""Hydra's plugins of dlrun: the launcher of warm workers and the sweeper over lists of values. Hydra looks for plugins in this
namespace package and nowhere else; what they do is in `dlrun.sweeps`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

LAUNCHER = {
    "_target_": "hydra_plugins.dlrun_sweeps.DlrunLauncher",
    "workers": "auto",
    "threads": "auto",
    "timeout": None,
    "stack": False,
    "stack_size": 64,
}
"""Their meaning: `dlrun.sweeps.pool.Settings`."""
SWEEPER = {"_target_": "hydra_plugins.dlrun_sweeps.DlrunSweeper", "max_batch_size": None, "params": None}
"""Those of Hydra's basic sweeper: jobs that other launchers than dlrun's are given at once (null: all); words of the sweep as a
mapping, for configuration files."""


class DlrunLauncher(Launcher):
    """Runs jobs in warm worker processes; see `dlrun.sweeps.pool`."""

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config

    def run(self, source: Any) -> None:
        """Runs the jobs of a `dlrun.sweeps.jobs.Source`."""
        from dlrun.sweeps.launching import run

        run(source, self.settings, self.config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs a batch that another sweeper than dlrun's has made."""
        from dlrun.sweeps.launching import launch

        return launch(job_overrides, initial_job_idx, self.settings, self.hydra_context, self.config)


class DlrunSweeper(Sweeper):
    """Every combination of the values on the command line; see `dlrun.sweeps.grid`."""

    def __init__(self, max_batch_size: int | None = None, params: Any = None) -> None:
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs all combinations."""
        from dlrun.sweeps.grid import sweep

        words = [f"{key}={value}" for key, value in self.params.items()] + arguments
        return sweep(words, self.launcher, self.hydra_context, self.config, self.max_batch_size)


ConfigStore.instance().store(group="hydra/launcher", name="dlrun", node=LAUNCHER, provider="dlrun")
ConfigStore.instance().store(group="hydra/sweeper", name="dlrun", node=SWEEPER, provider="dlrun")
