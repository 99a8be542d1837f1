"""Hydra's plugin `hydra/sweeper=optuna`: settings chosen by Optuna. What it does is in `dlrun.sweeps.search`.

sampler         tpe (default) | random | grid | qmc | cmaes | nsgaii
trials          in all, those of an earlier command on the same folder included; default 20, of a grid all combinations
seed            of the sampler
pruner          none (default) | median | halving | hyperband: ends runs early that do worse than others at the same epoch
objective       a metric such as val/accuracy, at the best checkpoint of a run; default trainer.monitor; nsgaii takes a list
direction       auto (default) | min | max, or a list of them
storage         sqlite:///<file>; default: study.log in the sweep folder
study           its name there; default: that of the sweep folder
timeout         seconds after which no trial is begun
startup_trials  that are drawn at random first, and that finish before the median prunes; default: Optuna's own
population      of nsgaii; default: a fifth of the trials, 4 to 50
n_jobs          runs at a time with another launcher than dlrun's; default 1 with basic, else 8
params          words of the search as a mapping, for configuration files
"""

from __future__ import annotations

from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

SWEEPER: dict[str, Any] = {
    "_target_": "hydra_plugins.dlrun_search.OptunaSweeper",
    "sampler": "tpe",
    "trials": None,
    "seed": 0,
    "pruner": "none",
    "objective": None,
    "direction": "auto",
    "storage": None,
    "study": None,
    "timeout": None,
    "startup_trials": None,
    "population": None,
    "n_jobs": None,
    "params": None,
}


class OptunaSweeper(Sweeper):
    """Searches the settings that are given intervals, ranges or lists; see `dlrun.sweeps.search`."""

    def __init__(self, params: Any = None, **settings: Any) -> None:
        self.params, self.settings = params or {}, settings

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        """Runs the search."""
        from dlrun.sweeps.search.perform import search

        words = [f"{key}={value}" for key, value in self.params.items()] + arguments
        return search(words, self.settings, self.launcher, self.hydra_context, self.config)


ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=SWEEPER, provider="dlrun")
