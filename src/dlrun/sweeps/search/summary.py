"""What a search found: printed, and written into the folder of the sweep as best.yaml and trials.csv."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.registry import ConfigError
from dlrun.sweeps.search.objective import Objective
from dlrun.sweeps.search.space import Space

BEST = "best.yaml"
TRIALS = "trials.csv"
SHOWN = 10  # of several best trials
AGAIN = 5  # seeds


def finish(study: Any, space: Space, objective: Objective, folder: Path) -> None:
    """Prints and writes what was found. What cannot be written (a full disk) is said; the runs are what counts."""
    trials = study.get_trials(deepcopy=False)
    best = best_trials(study)
    try:
        rundir.write_csv(folder / TRIALS, _table(trials, space, objective))
        _write_best(folder, best, space, objective)
    except (ConfigError, OSError) as error:
        print(f"dlrun: {folder}: no {TRIALS} or {BEST}: {error}", file=sys.stderr)
    for line in lines(trials, best, space, objective):
        print(line)


def best_trials(study: Any) -> list[Any]:
    """The best trial; of several objectives those that none is better than in all of them; none if no trial finished."""
    if not any(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False)):
        return []
    return list(study.best_trials) if len(study.directions) > 1 else [study.best_trial]


def lines(trials: Sequence[Any], best: Sequence[Any], space: Space, objective: Objective) -> list[str]:
    """What is printed at the end."""
    states = [state_of(trial) for trial in trials]
    counts = {name: states.count(name) for name in ("finished", "pruned", "failed", "diverged", "running")}
    told = ", ".join(f"{n} {name}" for name, n in counts.items() if n or name == "finished")
    found = [f"search: {len(trials)} trials: {told}"]
    if not best:
        failures = [trial.user_attrs["failure"]["message"] for trial in trials if "failure" in trial.user_attrs]
        return [*found, f"no trial finished{f'; the first failure: {failures[0]}' if failures else ''}"]
    for trial in best[:SHOWN]:
        values = " ".join(f"{name} {value:.5g}" for name, value in zip(objective.names, trial.values, strict=True))
        runs = " ".join(map(str, trial.user_attrs.get("runs", [])))
        found.append(f"best {values} (trial {trial.number}, run {runs}): {' '.join(_searched(trial, space))}")
    if len(best) > SHOWN:
        found.append(f"and {len(best) - SHOWN} more in {BEST}")
    if len(best) == 1:
        found += [*edges(best[0], space), f"again with other seeds: {again(best[0], space)}"]
    return found


def state_of(trial: Any) -> str:
    """finished, pruned, failed, diverged or running."""
    if failure := trial.user_attrs.get("failure"):
        return "diverged" if failure.get("status") == "diverged" else "failed"
    names = {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    return names.get(trial.state.name, "running")


def edges(trial: Any, space: Space) -> list[str]:
    """A warning for each parameter whose value lies on the edge of its range."""
    found = []
    for parameter in space.parameters:
        value = trial.params[parameter.name]
        if edge := parameter.edge(value):
            found.append(
                f"WARNING: {parameter.word(value)} is at the {edge} end of its range ({parameter.low:g} to "
                f"{parameter.high:g}): a wider range may hold a better value"
            )
    return found


def again(trial: Any, space: Space) -> str:
    """The command that trains the best settings with seeds that the search has not seen."""
    from dlrun.shell import command

    used = [word.partition("=")[2] for words in (*space.repeats, _fixed(space)) for word in words if _is_seed(word)]
    first = 1 + max((int(seed) for seed in used if seed.isdigit()), default=0)
    words = [word for word in space.settings(trial.params) if not _is_seed(word)]
    for key, entry in space.entries.items():
        if isinstance(entry, tuple) and not _is_seed(entry[0]):
            words.append(f"{key}={','.join(word.partition('=')[2] for word in entry)}")
    return " ".join([command("dlrun"), "-m", *map(shlex.quote, words), f"seed={first}", f"seeds={AGAIN}"])


def _is_seed(word: str) -> bool:
    return word.partition("=")[0].lstrip("+") == "seed"


def _fixed(space: Space) -> list[str]:
    return [entry for entry in space.entries.values() if isinstance(entry, str)]


def _searched(trial: Any, space: Space) -> list[str]:
    return [parameter.word(trial.params[parameter.name]) for parameter in space.parameters]


def _table(trials: Sequence[Any], space: Space, objective: Objective) -> list[list[Any]]:
    names = [parameter.name for parameter in space.parameters]
    table: list[list[Any]] = [["trial", "state", *objective.names, *names, "epochs", "seconds", "runs", "message"]]
    for trial in trials:
        ended, began = trial.datetime_complete, trial.datetime_start
        seconds = round((ended - began).total_seconds(), 3) if ended and began else None
        values = trial.values if trial.values is not None and len(trial.values) == len(objective.names) else None
        words = {
            p.name: p.word(trial.params[p.name]).partition("=")[2] for p in space.parameters if p.name in trial.params
        }
        table.append([
            trial.number, state_of(trial), *(values or [None] * len(objective.names)),
            *(words.get(name) for name in names), trial.user_attrs.get("epochs"), seconds,
            " ".join(map(str, trial.user_attrs.get("runs", []))), trial.user_attrs.get("failure", {}).get("message"),
        ])  # fmt: skip
    return table


def _write_best(folder: Path, best: Sequence[Any], space: Space, objective: Objective) -> None:
    import yaml

    found = [
        {
            "trial": trial.number,
            "runs": trial.user_attrs.get("runs", []),
            **dict(zip(objective.names, trial.values, strict=True)),
            "settings": _searched(trial, space),
            "overrides": space.settings(trial.params),
        }
        for trial in best
    ]
    if found:
        content = found[0] if len(objective.names) == 1 else found
        rundir.write_text(folder / BEST, yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
