"""`resume=` and `run=`: the saved configuration of a run as the primary configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.arguments import value_of
from dlrun.registry import ConfigError
from dlrun.settings import GROUPS

SPLITTING = ("data.split_seed", "data.val_fraction", "data.test_fraction", "data.split")
"""Settings that decide which samples are tested."""


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
    folder = Path(value).expanduser()
    config = rundir.read_config(folder, key)
    if lost := [name for name in (*GROUPS, "seed", "device") if name not in config]:
        raise ConfigError(
            f"{key}: {folder / rundir.CONFIG} is damaged (no '{lost[0]}'); restore it from a copy of the run"
        )
    for group in GROUPS:
        option = value_of(argv, group)
        if option and (group != "action" or key == "resume"):
            raise ConfigError(
                f"{group}: cannot be exchanged for '{option}' in a saved run ({key}={folder}); single values can, "
                f"such as {group}.<setting>=...; start a new run for another {group}"
            )
    for setting in SPLITTING:
        if value_of(argv, setting) is not None:
            raise ConfigError(
                f"{setting}: cannot be changed for a saved run ({key}={folder}): it would be tested on samples it was "
                "trained on; start a new run"
            )
    if key == "resume":
        _refuse_changes(folder, argv)
    action = config.pop("action", {})
    defaults: list[Any] = ["_self_", {"action": action.get("name", "train") if key == "resume" else "test"}]
    defaults += [{"override hydra/hydra_logging": "none"}, {"override hydra/job_logging": "none"}]
    ConfigStore.instance().store(
        name="saved_run",
        node={
            "defaults": defaults,
            **config,
            "resume": None,
            "run": None,
            "debug": False,
            "hydra": {
                "output_subdir": None,
                "run": {"dir": str(folder)},
                "job": {"name": "dlrun", "chdir": False},
            },
        },
    )
    return folder


def _refuse_changes(folder: Path, argv: list[str]) -> None:
    """A finished run has opened its test set: whatever trained it further would have chosen with that knowledge."""
    changes = [word for word in argv if word.lstrip("+~").partition("=")[0].partition(".")[0] in (*GROUPS, "seed")]
    if changes and (rundir.read_results(folder) or {}).get("status") == "finished":
        raise ConfigError(
            f"resume: {folder} is finished and its test set was read, so {' '.join(changes)} comes too late; "
            "start a new run with it"
        )
