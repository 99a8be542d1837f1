"""`resume=` with the folder of a sweep: its stored command is given once more, and the runs that ended are passed over.

What is stored may come from anybody, so it is data: what of it could run code is not acted on unasked.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.arguments import is_sweep, quote, split_arguments, value_of
from dlrun.registry import ConfigError, imports_of
from dlrun.saved_run import is_trusted, read_saved, refuse_imports
from dlrun.sweeps.manifest import EXTENDING, FILE, PASSING, Manifest, read

HARMLESS = re.compile(
    r"hydra\.sweep\.subdir=(?!\.)(?!.*\.\.)([\w=.,-]|\$\{[\w.]+\}|\$\{hydra:job\.(num|id)\})+"
    r"|hydra/sweeper=[\w-]+"
    r"|\+?hydra\.sweeper\.(max_batch_size|params(\.[\w.@/]+)?)=(?!.*(_target_|hydra)).*"
    r"|hydra\.sweeper\.(trials|seed|timeout|startup_trials|population|n_jobs)=(\d[\d_.eE+-]*|null)"
    r"|hydra\.sweeper\.sampler=(tpe|random|grid|qmc|nsgaii)|hydra\.sweeper\.pruner=\w+"
    r"|hydra\.sweeper\.(objective|direction)=[\w/,\[\]-]+"
)
"""Of Hydra's own settings those that number and place the runs of a sweep and can do nothing else. Not among them is
sampler=cmaes, whose state in study.log is a pickle, nor another storage."""
PARENT = "outputs/multirun"  # as in configs/config.yaml
AGAIN = ("fail_fast", "dry_run")
HOW_TO_RUN = (
    "hydra/launcher",
    "hydra.launcher.",
    "hydra.verbose",
    *EXTENDING,
)  # may be typed again: the runs stay the same


def use_saved_sweep(argv: list[str]) -> list[str] | None:
    """The command line that goes on with the sweep in the folder `resume=`; None if it is not the folder of a sweep.

    Raises ConfigError for changes (a sweep goes on as it was started), flags that must be given again, a damaged manifest,
    and stored words that could run code, unless the command line says trust_imports=true.
    """
    value = value_of(argv, "resume")
    folder = Path(os.path.expanduser(value or ""))
    if not value or is_sweep(argv) or rundir.is_run(folder) or (saved := read(folder)) is None:
        return None
    flags, typed = split_arguments(argv)
    if not is_trusted(argv):
        _refuse_code(folder, saved)
    if (value_of(argv, "rerun") or "").lower() == "true":
        raise ConfigError("rerun: a sweep that goes on is not begun anew; give its own command again, with rerun=true")
    passing = [word for word in typed if word.partition("=")[0].lstrip("+") in AGAIN]
    words = [word for word in typed if word.partition("=")[0].lstrip("+") not in ("resume", *PASSING)]
    if changes := [word for word in words if not word.lstrip("+").startswith(HOW_TO_RUN)]:
        raise ConfigError(
            f"resume: a sweep goes on as it was started, without {' '.join(changes)}; start a new sweep with it "
            f"({folder}: {saved})"
        )
    if any("-cd" in f or "--config-dir" in f for f in saved.flags) and not any(
        f.startswith(("-cd", "--config-dir")) for f in flags
    ):
        raise ConfigError(f"resume: '{folder}' was started with {' '.join(saved.flags)}; give that folder again")
    place = "hydra.sweep.dir=" + quote(str(folder)).replace("${", "\\${")
    return [*flags, "--multirun", *saved.words, *saved.hydra, *words, *passing, place]


def sweep_folder(argv: list[str]) -> Callable[[str], str]:
    """The resolver behind `hydra.sweep.dir`: below the folder it is given, one named after a hash of the sweep on the command
    line, so that the same command finds what it has done already; with `rerun=true` one beside it that is still free."""
    flags, typed = split_arguments(argv)
    hydra = [word for word in typed if _is_hydras(word)]
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    name = Manifest.of((word for word in typed if word not in hydra), hydra, flags).id
    again = (value_of(argv, "rerun") or "").lower() == "true"

    @functools.cache
    def folder(parent: str) -> str:
        first = f"{parent}/{name}"
        others = (f"{first}_{number}" for number in itertools.count(2))
        return next(path for path in itertools.chain([first], others) if not os.path.exists(path)) if again else first

    return folder


def _is_hydras(word: str) -> bool:
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def in_stored_order(argv: list[str], default: Callable[[str], str]) -> list[str]:
    """The command line of a sweep; where the same one has been started in its folder (`hydra.sweep.dir=`, else that of
    `default`), with the overrides in the order in which they number its runs."""
    folder = value_of(argv, "hydra.sweep.dir") or default(PARENT)
    if not is_sweep(argv) or (saved := read(Path(folder))) is None:
        return argv
    flags, typed = split_arguments(argv)
    hydra = [word for word in typed if _is_hydras(word)]
    words = [word for word in typed if word not in hydra]
    if not saved.is_of(Manifest.of(words, hydra, flags)):
        return argv
    return [*flags, *saved.words, *(word for word in words if word not in saved.words), *hydra]


def _refuse_code(folder: Path, saved: Manifest) -> None:
    for word in (*saved.words, *saved.hydra):
        key = word.partition("=")[0].lstrip("+~")
        if word.startswith("-") or key in ("resume", "run", "hydra.sweep.dir", "hydra.mode"):
            raise ConfigError(f"resume: {folder / FILE} is damaged ('{word}'); restore it from a copy of the sweep")
        if HARMLESS.fullmatch(word):
            continue
        if re.match(r"hydra(\W|$)", key) or re.search(r"@_*(global_\.)?hydra|\$\{[^}]*:", word):
            raise ConfigError(
                f"resume: the saved sweep sets '{word}', which can run code; nothing was run. If you trust it, add "
                "trust_imports=true"
            )


def job_config(composed: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration with which a stopped run of a sweep goes on: its own, as the composed one does not know what an
    `auto` stood for. Raises ConfigError if the saved one is damaged or imports what the composed one does not."""
    saved = read_saved(folder, "resume")
    if imports_of(saved) - imports_of(composed):
        refuse_imports(saved, "resume", trusted=bool(composed.get("trust_imports")))
    command = {key: value for key, value in composed.items() if key not in saved}
    return {**saved, **command, "action": composed["action"]}
