"""Optuna's side of a search: where the study is stored, who proposes the next trial, who ends one early.

Every trial has a sampler of its own, seeded by the seed of the search and the number of the trial, so that a search with one
worker that is stopped and continued proposes what an unbroken one would have.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlrun.registry import ConfigError
from dlrun.sweeps.search.objective import Objective
from dlrun.sweeps.search.settings import KEY, Settings, trial_limit
from dlrun.sweeps.search.space import Space

if TYPE_CHECKING:
    import optuna

FILE = "study.log"
ATTRIBUTE = "dlrun"


def import_optuna() -> Any:
    """Optuna, which prints nothing of its own. Raises ConfigError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigError(f"hydra/sweeper=optuna: needs Optuna: pip install 'dlrun[search]' ({error})") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def open_study(settings: Settings, space: Space, objective: Objective, folder: Path) -> optuna.Study:
    """The study of the sweep in `folder`, or the one begun there earlier.

    Raises ConfigError for a study of another space or objective, and for a file that is damaged or cannot be written.
    """
    optuna = import_optuna()
    check_packages(settings.sampler)
    place = settings.storage or str(folder / FILE)
    name = settings.study or ("dlrun" if settings.storage is None else folder.resolve().name)
    try:
        storage = settings.storage or _journal(folder / FILE)
        study: Any = optuna.create_study(
            study_name=name,
            storage=storage,
            directions=[{"min": "minimize", "max": "maximize"}[d] for d in objective.directions],
            load_if_exists=True,
        )
        known = study.user_attrs.get(ATTRIBUTE)
    except OSError as error:
        raise ConfigError(f"{KEY}.storage: cannot write {place} ({error.strerror})") from error
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{KEY}.storage: {place} is damaged or cannot be used ({reason})") from error
    about = {
        "space": space.describe(),
        "objective": list(objective.names),
        "directions": list(objective.directions),
        "population": settings.population or population(trial_limit(settings, space)),
        "folder": "" if settings.storage is None else str(folder.resolve()),
    }
    if known is None:
        _refuse_foreign(study, place, name)
        study.set_user_attr(ATTRIBUTE, about)
    else:
        _refuse_other(known, about, place, name)
    return study


def _journal(path: Path) -> Any:
    """The storage in a file; without what a process that was killed has left half written. The sweep folder is locked."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    with contextlib.suppress(FileNotFoundError):
        path.with_name(f"{path.name}.lock").unlink()
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            with open(path, "r+b") as file:
                file.truncate(whole)
    return JournalStorage(JournalFileBackend(str(path)))


def _refuse_foreign(study: optuna.Study, place: str, name: str) -> None:
    if study.get_trials(deepcopy=False):
        raise ConfigError(
            f"{KEY}.storage: the study '{name}' in {place} was not made by dlrun; choose another {KEY}.study"
        )


def _refuse_other(known: Any, about: Mapping[str, Any], place: str, name: str) -> None:
    """Raises ConfigError unless a study is of the same search, and names the first difference."""
    other = json.loads(json.dumps(known)) if isinstance(known, dict) else {}
    if other.get("folder", "") != about["folder"]:
        raise ConfigError(
            f"{KEY}.storage: the study '{name}' in {place} belongs to the sweep in '{other.get('folder')}'; choose another "
            f"{KEY}.study"
        )
    for what in ("objective", "directions"):
        if other.get(what) != about[what]:
            raise ConfigError(
                f"{KEY}.objective: {place} holds a search for {other.get('objective')} {other.get('directions')}, not "
                f"{about['objective']} {about['directions']}; choose a new hydra.sweep.dir"
            )
    space, before = about["space"], other.get("space") or {}
    for key in dict.fromkeys([*space, *before]):
        if space.get(key) != before.get(key):
            raise ConfigError(
                f"hydra.sweep.dir: {place} holds a search of another space ({key}: {_short(before.get(key))} instead of "
                f"{_short(space.get(key))}); choose a new folder"
            )


def _short(entry: Any) -> str:
    if entry is None:
        return "not given"
    if not isinstance(entry, dict):
        return str(entry)
    if entry.get("kind") == "choice":
        return ", ".join(entry["choices"])
    log = ", log" if entry.get("log") else ""
    step = f", step {entry['step']:g}" if entry.get("step") not in (None, 1) else ""
    return f"{entry.get('low'):g} to {entry.get('high'):g}{step}{log}"


def check_packages(sampler: str) -> None:
    """Raises ConfigError for a sampler whose own package is not installed."""
    from importlib.util import find_spec

    package = {"cmaes": "cmaes", "qmc": "scipy"}.get(sampler)
    if package and find_spec(package) is None:
        raise ConfigError(f"{KEY}.sampler: {sampler} needs the package {package}: pip install {package}")


def population(trials: int) -> int:
    """Of NSGA-II, so that a search has about five generations: 4 to 50."""
    return max(4, min(50, trials // 5))


def make_sampler(settings: Settings, number: int, population: int) -> optuna.samplers.BaseSampler:
    """The sampler of trial `number`."""
    from optuna import samplers

    own = int(hashlib.sha256(f"{settings.seed}/{number}".encode()).hexdigest()[:8], 16)
    startup: Any = {} if settings.startup_trials is None else {"n_startup_trials": settings.startup_trials}
    if settings.sampler == "tpe":
        return samplers.TPESampler(seed=own, multivariate=True, constant_liar=True, **startup)
    if settings.sampler == "cmaes":
        return samplers.CmaEsSampler(seed=own, warn_independent_sampling=False, **startup)
    if settings.sampler == "nsgaii":
        return samplers.NSGAIISampler(seed=own, population_size=population)
    if settings.sampler == "qmc":  # one sequence for the whole search
        return samplers.QMCSampler(
            seed=settings.seed, scramble=True, independent_sampler=samplers.RandomSampler(seed=own),
            warn_independent_sampling=False,
        )  # fmt: skip
    return samplers.RandomSampler(seed=own)


def make_pruner(settings: Settings, epochs: int | None) -> optuna.pruners.BasePruner:
    """The pruner; `epochs`: of a run, where that is known."""
    from optuna import pruners

    if settings.pruner == "median":
        return pruners.MedianPruner(n_startup_trials=5 if settings.startup_trials is None else settings.startup_trials)
    if settings.pruner == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=1, max_resource=epochs or "auto", reduction_factor=3)
    return pruners.NopPruner()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings of what is experimental."""
    from optuna.exceptions import ExperimentalWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
