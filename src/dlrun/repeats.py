"""`seeds=N` and `folds=K`: one experiment, run several times.

    dlrun model=mlp seeds=5       is  dlrun -m model=mlp seed=range(0,5)
    dlrun model=mlp folds=5       is  dlrun -m model=mlp data.folds=5 data.fold=range(0,5)
    dlrun seed=10 seeds=3 folds=5 is  dlrun -m seed=range(10,13) data.folds=5 data.fold=range(0,5)

Works on the words of the command line, before Hydra reads them; imports neither Hydra nor torch.
"""

from __future__ import annotations

import re

from dlrun.registry import ConfigError
from dlrun.settings import TRAINING_ACTIONS

REPEATS = ("seed", "data.fold")
"""Settings that make repetitions of one experiment: runs that differ in nothing else are one row of every table."""

LEAST = {"seeds": 1, "folds": 2}
MOST = 100_000  # more would only be noticed once the memory is full

_WHOLE = re.compile(r"0|[1-9](_?[0-9])*")  # as Hydra writes whole numbers
_ASKING = ("--help", "-h", "--hydra-help", "--version", "--shell-completion", "-sc")
_SINGLE = ("--cfg", "-c", "--info", "-i", "--run", "-r")


def expand(argv: list[str]) -> list[str]:
    """The command line with `seeds=N` and `folds=K` written as the sweep that they stand for.

    Of one that is given twice the last one counts; null is none.

    Args:
        argv: flags and overrides, as typed.

    Raises ConfigError for a number that is none or too small, and for what contradicts it elsewhere on the command line.
    """
    if any(_key(word) in _ASKING for word in argv):
        return argv
    counts = {name: _count(argv, name) for name in LEAST}
    _refuse_both_validations(argv, counts["folds"])
    given = [name for name in LEAST if counts[name]]
    for name in given:
        _refuse_others(argv, name, f"{name}={counts[name]}")
    written = {"seeds": _seeds(argv, counts["seeds"]), "folds": _folds(counts["folds"])}
    last = {_key(word): place for place, word in enumerate(argv)}
    words = [] if not given or {"-m", "--multirun"} & set(argv) else ["--multirun"]
    for place, word in enumerate(argv):
        name = _key(word)
        if name in written:
            words += written[name] if place == last[name] else []
        elif name != "seed" or not counts["seeds"]:
            words.append(word)
    return words


def _count(argv: list[str], name: str) -> int | None:
    """N of the last `name=N`; None if it is not given or null."""
    value = _last(argv, name)
    if value is None or value.lower() == "null":
        return None
    expected = f"expected a whole number, {LEAST[name]} or more, such as {name}=5"
    if not value:
        raise ConfigError(f"{name}: no value given; {expected}")
    if not _WHOLE.fullmatch(value) or len(value) > 18 or int(value) < LEAST[name]:
        listed = {"seeds": "seed=0,3,7", "folds": "data.folds=5 data.fold=0,2"}[name]
        chosen = f"; chosen {name}: -m {listed}" if re.search(r"[,(\[]", value) else ""
        raise ConfigError(f"{name}: got '{value[:40]}'; {expected}{chosen}")
    if int(value) > MOST:
        raise ConfigError(f"{name}: got {value}; at most {MOST}")
    return int(value)


def _seeds(argv: list[str], count: int | None) -> list[str]:
    if not count:
        return []
    first = _last(argv, "seed") or "0"
    if not _WHOLE.fullmatch(first):
        raise ConfigError(f"seeds: together with it, seed is the first of them, one whole number; got seed={first}")
    return [f"seed=range({int(first)},{int(first) + count})"]


def _folds(count: int | None) -> list[str]:
    return [f"data.folds={count}", f"data.fold=range(0,{count})"] if count else []


def _refuse_others(argv: list[str], name: str, what: str) -> None:
    """Raises ConfigError for words that cannot stand beside `what`, which makes a sweep over training runs."""
    for word in argv:
        key, value = _key(word), _value(word)
        if key in _SINGLE:
            raise ConfigError(f"{key}: not together with {what}, which makes a sweep; leave it away")
        if key in ("resume", "run") and value not in ("", "null"):
            raise ConfigError(f"{name}: not together with {key}=; {what} starts new runs")
        if key == "action" and (others := [a for a in value.split(",") if a not in TRAINING_ACTIONS]):
            raise ConfigError(f"{name}: a sweep is over training runs, not '{others[0]}'; leave {what} away")
        if key in ("data.folds", "data.fold") and name == "folds":
            raise ConfigError(
                f"folds: not together with {key}={value}; {what} runs every fold, data.folds=5 data.fold=0 one of them"
            )
        if name == "seeds" and key == "hydra.sweeper.params.seed":
            raise ConfigError(f"seeds: not together with {key}={value}; leave one of them away")


def _refuse_both_validations(argv: list[str], count: int | None) -> None:
    folds = count or _last(argv, "data.folds")
    if folds not in (None, "", "null") and _last(argv, "data.val_fraction") is not None:
        raise ConfigError(
            "data.val_fraction: not together with folds, one of which is the validation set; leave one away"
        )


def _last(argv: list[str], key: str) -> str | None:
    """The value of the last word `key=value`; None if there is none."""
    return next((_value(word) for word in reversed(argv) if _key(word) == key), None)


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _value(word: str) -> str:
    value = word.partition("=")[2].strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value
