"""`resume=` and `run=`: the saved configuration of a run as the primary configuration.

A saved configuration may come from anybody, so it is data: known settings are taken over as plain values, text that looks
like an interpolation stays text, nothing is imported unasked, and no other action than training is gone on with.
"""

from __future__ import annotations

import os
import re
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.arguments import value_of
from dlrun.registry import ConfigError
from dlrun.settings import GROUPS, SPLITTING, TRAINING_ACTIONS, config_dir

MAX_VALUES = 100_000  # of a saved configuration: aliases in YAML can make a short text endless
MAX_DEPTH = 20

LATER = {"transfer": {"name": "none"}}
"""Groups that runs of an older dlrun do not have, and what they stand for."""


def use_saved_run(argv: list[str]) -> Path | None:
    """Makes the saved configuration of `resume=` or `run=` the primary configuration; the run's folder, or None.

    Single values may be overridden on top; another option of a group is refused, since that would be another run.
    """
    key = next((k for k in ("resume", "run") if value_of(argv, k) is not None), None)
    if key is None:
        return None
    if {"-m", "--multirun"} & set(argv):
        raise ConfigError(f"{key}: not together with -m; a sweep starts new runs")
    from hydra.core.config_store import ConfigStore

    value = value_of(argv, key)
    if not value:
        raise ConfigError(f"{key}: no folder given; expected {key}=outputs/<date>/<run>")
    folder = Path(os.path.expanduser(value))  # unlike Path.expanduser, leaves an unknown user alone
    config = read_saved(folder, key)
    refuse_imports(config, key, is_trusted(argv))
    for group in GROUPS:
        option = value_of(argv, group)
        if option and (group != "action" or key == "resume"):
            raise ConfigError(
                f"{group}: cannot be exchanged for '{option}' in a saved run ({key}={folder}); single values can, "
                f"such as {group}.<setting>=...; start a new run for another {group}"
            )
    for setting in SPLITTING:
        if any(word.partition("=")[0].lstrip("+~") == setting for word in argv):
            raise ConfigError(
                f"{setting}: cannot be changed for a saved run ({key}={folder}): it would be tested on samples it was "
                "trained on; start a new run"
            )
    if changes := [word for word in argv if word.lstrip("+~").startswith("transfer.")]:
        raise ConfigError(
            f"{changes[0].partition('=')[0]}: is about the beginning of a run, and cannot be changed for a saved one "
            f"({key}={folder}); start a new run"
        )
    if key == "resume":
        _refuse_changes(folder, argv)
    defaults: list[Any] = ["_self_"]
    if key == "run":  # the action that made the run is not the one that reads it
        del config["action"]
        defaults.append({"action": "test"})
    defaults += [{"override hydra/hydra_logging": "none"}, {"override hydra/job_logging": "none"}]
    ConfigStore.instance().store(
        name="saved_run",
        node={
            "defaults": defaults,
            **_literal(config),
            **_command_settings(),
            "hydra": {
                "output_subdir": None,
                "run": {"dir": _literal(str(folder))},
                "job": {"name": "dlrun", "chdir": False},
            },
        },
    )
    return folder


def read_saved(folder: Path, key: str) -> dict[str, Any]:
    """What a run is made of (see `rundir.SAVED`), as plain values: whatever else the file holds is left out.

    Raises ConfigError, blaming `key`, if something is lost, or is nothing that dlrun writes.
    """
    config = {**LATER, **rundir.read_config(folder, key)}
    problem = _problem(config)
    if problem:
        raise ConfigError(f"{key}: {folder / rundir.CONFIG} is damaged ({problem}); restore it from a copy of the run")
    config = {name: config[name] for name in rundir.SAVED}
    action = config["action"].get("name") if isinstance(config["action"], dict) else config["action"]
    if key == "resume" and action not in TRAINING_ACTIONS:
        raise ConfigError(f"resume: '{folder}' is no training run (its action is {_short(action)}); nothing was run")
    return config


def _problem(config: Mapping[str, Any]) -> str:
    """What shows that dlrun did not write this; empty if nothing does."""
    if lost := [name for name in rundir.SAVED if name not in config]:
        return f"no '{lost[0]}'"
    for number, (where, value) in enumerate(_values({name: config[name] for name in rundir.SAVED})):
        if number > MAX_VALUES or len(where) > MAX_DEPTH:
            return "it has no end"
        if not isinstance(value, (str, int, float, dict, list, type(None))):
            return f"{_dotted(where)} is a {type(value).__name__}"
        if isinstance(value, dict) and not all(isinstance(name, (str, int, float)) for name in value):
            return f"{_dotted(where)} has a name that is no text"
    return ""


def is_trusted(argv: list[str]) -> bool:
    """Whether the command line says `trust_imports=true`. Raises ConfigError for anything but true and false."""
    value = value_of(argv, "trust_imports") or "false"
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"trust_imports: got '{value}'; expected true or false")
    return value.lower() == "true"


def refuse_imports(config: Mapping[str, Any], key: str, trusted: bool) -> None:
    """Raises ConfigError, blaming `key`, if a saved configuration has an `import:` anywhere and the user does not trust it:
    importing a module runs it."""
    found = [(where, value) for where, value in _values(config) if where and where[-1] == "import" and value]
    if found and not trusted:
        modules = ", ".join(f"{_short(value)} ({_dotted(where)})" for where, value in found[:8])
        raise ConfigError(
            f"{key}: the saved configuration imports {modules}{', ...' if found[8:] else ''}, which runs code; nothing was "
            "imported. If you trust it, add trust_imports=true"
        )


def _values(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value of a nest of mappings and lists with the names that lead to it, from the outside in."""
    yield where, value
    if isinstance(value, (Mapping, list, tuple)):
        inner = value.items() if isinstance(value, Mapping) else enumerate(value)
        for name, child in inner:
            yield from _values(child, (*where, name))


def _literal(value: Any) -> Any:
    """The value with every "${" escaped, so that OmegaConf gives it back as it is."""
    if isinstance(value, dict):
        return {name: _literal(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_literal(child) for child in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def _command_settings() -> dict[str, Any]:
    """The settings of `config.yaml` that belong to a command and are never saved, with their defaults."""
    import yaml

    top = yaml.safe_load((config_dir() / "config.yaml").read_text(encoding="utf-8"))
    return {name: value for name, value in top.items() if name not in (*rundir.SAVED, "defaults", "hydra")}


def _dotted(where: tuple[Any, ...]) -> str:
    return ".".join(map(str, where))[:120]


def _short(value: Any) -> str:
    short = reprlib.Repr()
    short.maxstring = short.maxother = 80
    return short.repr(value)


def _refuse_changes(folder: Path, argv: list[str]) -> None:
    """A finished run has opened its test set: whatever trained it further would have chosen with that knowledge."""
    changes = [word for word in argv if word.lstrip("+~").partition("=")[0].partition(".")[0] in (*GROUPS, "seed")]
    if changes and (rundir.read_results(folder) or {}).get("status") == "finished":
        raise ConfigError(
            f"resume: {folder} is finished and its test set was read, so {' '.join(changes)} comes too late; "
            "start a new run with it"
        )
