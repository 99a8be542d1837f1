"""A search from its words to its summary, called by Hydra's plugin."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dlrun.registry import ConfigError
from dlrun.sweeps import submitted
from dlrun.sweeps import sweep as current
from dlrun.sweeps.compose import Composer
from dlrun.sweeps.grid import LARGE
from dlrun.sweeps.jobs import Job
from dlrun.sweeps.manifest import without_passing
from dlrun.sweeps.search.batches import run_in_batches
from dlrun.sweeps.search.objective import Objective, read_objective
from dlrun.sweeps.search.settings import KEY, Settings, check, check_together, epochs_of, trial_limit
from dlrun.sweeps.search.source import Search
from dlrun.sweeps.search.space import Space
from dlrun.sweeps.search.study import check_packages, import_optuna, open_study
from dlrun.sweeps.search.summary import best_trials, finish
from dlrun.sweeps.search.words import read_space

BATCH = 8  # jobs at a time with a launcher that runs several at once


def search(words: Sequence[str], given: Mapping[str, Any], launcher: Any, context: Any, config: DictConfig) -> None:
    """Searches; with `dry_run=true` only says what would be searched.

    Raises ConfigError for settings, objective or space that make no sense, and what Hydra raises for words that it cannot
    compose, before anything is run.
    """
    settings = check({key: OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for key, v in given.items()})
    folder = Path(str(config.hydra.sweep.dir))
    composer = Composer(context.config_loader, config, folder)
    passing = [word for word in words if word not in without_passing(words)]
    space = read_space(composer.parse(without_passing(words)))
    # every option of every list, so that a misspelt one is found at once, and one that lacks a setting that another one has
    first = composer.jobs(space.corners())[0]
    trainer: Mapping[str, Any] = first.config.get("trainer") or {}
    objective = _objective(settings, space, str(trainer.get("monitor", "val/loss")))
    check_together(settings, space, len(objective.names))
    import_optuna()
    check_packages(settings.sampler)
    listens = getattr(launcher, "run", None)
    if settings.pruner != "none" and not listens:
        print(f"dlrun: {KEY}.pruner: off, since {_name(launcher)} does not listen to runs", file=sys.stderr)
        settings = check({**vars(settings), "pruner": "none"})
    runs = trial_limit(settings, space) * len(space.repeats)
    if runs > LARGE and config.get("allow_large") is not True:
        raise ConfigError(f"-m: this search makes {runs:,} jobs; if that is meant, add allow_large=true")
    if config.get("dry_run"):
        _show(settings, space, objective)
        return
    if listens and getattr(launcher, "settings", {}).get("stack"):
        print("dlrun: launcher.stack: off, since each trial depends on those that ended before it", file=sys.stderr)
    study = open_study(settings, space, objective, folder)
    source = Search(settings, space, objective, study, _maker(composer, passing), epochs=epochs_of(trainer))
    try:
        if listens:
            listens(source)
        else:
            run_in_batches(
                source,
                lambda jobs, number: launcher.launch([[*job, *passing] for job in jobs], initial_job_idx=number),
                settings.n_jobs or (1 if _name(launcher) == "BasicLauncher" else BATCH),
            )
    except BaseException:  # a signal, say: what has been found so far
        if best_trials(study):
            finish(study, space, objective, folder)
        raise
    finish(study, space, objective, folder)


def _maker(composer: Composer, passing: list[str]) -> Any:
    """Makes the jobs of trials, to whose words `passing` is added; one that was submitted before is as it was then."""
    known = submitted.read(composer.folder)

    def make(number: int, words: list[str]) -> Job:
        job = composer.job(number, [*words, *passing])
        before = known.get(number)
        return before if before and before.overrides == job.overrides else current.submit([job])[0]

    return make


def _objective(settings: Settings, space: Space, monitor: str) -> Objective:
    if settings.objective is None and any(p.name == "trainer.monitor" for p in space.parameters):
        raise ConfigError(f"{KEY}.objective: say which metric to search for; trainer.monitor, the default, is searched")
    return read_objective(settings.objective, settings.direction, monitor)


def _name(launcher: Any) -> str:
    return type(launcher).__name__


def _show(settings: Settings, space: Space, objective: Objective) -> None:
    trials, runs = trial_limit(settings, space), len(space.repeats)
    print(f"{trials} trials of {runs} run(s) each; {settings.sampler}, pruner {settings.pruner}")
    for name, direction in zip(objective.names, objective.directions, strict=True):
        print(f"objective: {name} ({direction}){' mean over the runs of a trial' if runs > 1 else ''}")
    for parameter in space.parameters:
        log = ", log" if parameter.log else ""
        bounds = f"{parameter.low:g} to {parameter.high:g}{log}"
        print(f"{parameter.name}: {', '.join(parameter.choices) or bounds}")
