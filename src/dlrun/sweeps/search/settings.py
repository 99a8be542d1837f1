"""The settings of a search, and which of them go together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from annotated_types import Ge, Gt

from dlrun.registry import ConfigError, did_you_mean, validate
from dlrun.sweeps.search.space import Space

SAMPLERS = ("tpe", "random", "grid", "qmc", "cmaes", "nsgaii")
PRUNERS = ("none", "median", "halving", "hyperband")
DIRECTIONS = ("auto", "min", "max")
TRIALS = 20
KEY = "sweeper"


@dataclass(frozen=True)
class Settings:
    """See `hydra_plugins.dlrun_search`, where each is described."""

    sampler: str = "tpe"
    trials: Annotated[int, Gt(0)] | None = None
    seed: Annotated[int, Ge(0)] = 0
    pruner: str = "none"
    objective: str | list[str] | None = None
    direction: str | list[str] = "auto"
    storage: str | None = None
    study: str | None = None
    timeout: Annotated[float, Gt(0)] | None = None
    startup_trials: Annotated[int, Ge(0)] | None = None
    population: Annotated[int, Gt(1)] | None = None
    n_jobs: Annotated[int, Gt(0)] | None = None


def check(given: Mapping[str, Any]) -> Settings:
    """The settings as they were given, checked one by one. Raises ConfigError for the first that is wrong."""
    for name, allowed in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        _check_choice(name, "none" if given[name] is None and name == "pruner" else given[name], allowed)
    checked = {}
    for item in fields(Settings):
        value = given[item.name]
        if item.name == "pruner" and value is None:
            value = "none"
        checked[item.name] = validate(value, _annotations()[item.name], f"{KEY}.{item.name}")
    settings = Settings(**checked)
    for direction in _listed(settings.direction):
        _check_choice("direction", direction, DIRECTIONS)
    if settings.storage is not None and not settings.storage.startswith("sqlite:///"):
        raise ConfigError(
            f"{KEY}.storage: got '{settings.storage}'; expected sqlite:///<file>, or null for study.log in the sweep folder"
        )
    return settings


def check_together(settings: Settings, space: Space, objectives: int) -> None:
    """Raises ConfigError for a sampler that cannot search the space, or cannot have the pruner or so many objectives."""
    sampler = settings.sampler
    if sampler == "grid":
        for parameter in space.parameters:
            _ = parameter.count
    if sampler == "cmaes":
        if lists := [p.name for p in space.parameters if p.kind == "choice"]:
            raise ConfigError(f"{KEY}.sampler: cmaes searches numbers only, not {', '.join(lists)}; use tpe")
        if len(space.parameters) < 2:
            raise ConfigError(f"{KEY}.sampler: cmaes needs at least two settings to search; use tpe")
    if settings.pruner != "none" and sampler == "nsgaii":
        raise ConfigError(f"{KEY}.pruner: nsgaii compares finished runs only; leave {settings.pruner} away, or use tpe")
    if objectives > 1 and settings.pruner != "none":
        raise ConfigError(f"{KEY}.pruner: {settings.pruner} needs a single objective")
    if objectives > 1 and sampler == "cmaes":
        raise ConfigError(f"{KEY}.sampler: cmaes needs a single objective; use nsgaii")
    if len(_listed(settings.direction)) not in (1, objectives):
        raise ConfigError(f"{KEY}.direction: got {len(settings.direction)} for {objectives} objective(s)")


def trial_limit(settings: Settings, space: Space) -> int:
    """How many trials the search has in all; a grid by default all its combinations."""
    if settings.sampler != "grid":
        return settings.trials or TRIALS
    combinations = math.prod(parameter.count for parameter in space.parameters)
    return min(settings.trials or combinations, combinations)


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(
            f"{KEY}.{name}: got '{value}'; allowed: {', '.join(allowed)}{did_you_mean(str(value), allowed)}"
        )


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]


def _annotations() -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(Settings, include_extras=True)


def epochs_of(trainer: Mapping[str, Any]) -> int | None:
    """How many epochs a run has, as far as its configuration says."""
    if trainer.get("fast_dev_run"):
        return 1
    epochs = trainer.get("epochs")
    return epochs if isinstance(epochs, int) and not trainer.get("steps") else None
