"""From the words of the command line to the action: Hydra composes the configuration, of a sweep one for each run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dlrun import rundir
from dlrun.arguments import check_groups, check_sweep, is_quiet, refuse_shadowing, split_arguments
from dlrun.registry import ConfigError
from dlrun.saved_run import is_trusted, refuse_imports, use_saved_run
from dlrun.saved_sweep import in_stored_order, job_config, sweep_folder, use_saved_sweep
from dlrun.settings import TRAINING_ACTIONS, config_dir
from dlrun.signals import Interrupted
from dlrun.suggest import check_keys, file_error, is_users
from dlrun.sweeps import sweep
from dlrun.sweeps.compose import resolved
from dlrun.sweeps.job import perform_job
from dlrun.sweeps.jobs import Job, job_id
from dlrun.sweeps.manifest import without_passing

run_folder: Path | None = None
"""Of the training run that this command makes or goes on with, once it is known."""
_sweep_folder: Callable[[str], str] = str


def _sweep_dir(parent: str) -> str:
    """A named function, because launchers send the resolvers to other processes, where a lambda does not arrive."""
    return _sweep_folder(parent)


OmegaConf.register_new_resolver("dlrun.sweep_dir", _sweep_dir, use_cache=True, replace=True)


def execute(argv: list[str], work_begins: Callable[[], None]) -> int:
    """Composes the configuration and performs its action. Returns the exit code, 0 or 4.

    Args:
        argv: sorted by `arguments.sort_arguments`.
        work_begins: called before an action, when everything it needs is imported: from then on there may be something to
            tidy up.
    """
    global run_folder, _sweep_folder
    run_folder = None
    OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)
    refuse_shadowing(argv)
    trusted = is_trusted(argv)
    continued = None if is_quiet(argv) else use_saved_sweep(argv)
    _sweep_folder = sweep_folder(continued or argv)
    argv = continued or in_stored_order(argv, _sweep_folder)
    flags = [flag for flag in split_arguments(argv)[0] if flag not in ("-m", "--multirun")]

    def check_stored(config: dict[str, Any]) -> None:
        if continued:
            refuse_imports(config, "resume", trusted)

    sweep.prepare(flags, work_begins, check_stored)
    saved = use_saved_run(argv)
    if not is_quiet(argv):
        rundir.arm()
        check_groups(argv)
        check_sweep(argv)
    errors: list[Exception] = []
    here = os.getcwd()

    def act(config: dict[str, Any], folder: Path) -> float | None:
        if continued:
            try:
                refuse_imports(config, "resume", trusted)
            except ConfigError as error:  # not a failure of one run
                raise sweep.Stopped(error) from error
        try:
            return perform(config, folder, work_begins)
        except OSError as error:  # of the machine: a line is enough, in a sweep too
            raise ConfigError(file_error(error)) from error

    def task(cfg: DictConfig) -> float | None:
        global run_folder
        folder = saved or Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            os.chdir(here)  # a launcher may have brought this to another process
            work_begins()
            return _perform_job(cfg, folder, act)
        try:
            config = plain(cfg)
            run_folder = folder if (config.get("action") or {}).get("name") in TRAINING_ACTIONS else None
            return act(config, folder)
        except Exception as error:  # kept from Hydra, which would print lines of its own
            errors.append(error)
            return None

    try:
        _call_hydra(task, argv, "saved_run" if saved else "config")
    except sweep.Stopped as stopped:
        if not isinstance(stopped.error, sweep.Failed):
            raise stopped.error from stopped
        print(f"dlrun: {stopped.error}; the others are not begun (fail_fast=true)", file=sys.stderr)
        sweep.finish(Path(HydraConfig.get().sweep.dir))
    finally:
        sweep.release()
    if errors:
        raise errors[0]
    return 4 if sweep.failed_runs() else 0


def _perform_job(cfg: DictConfig, folder: Path, act: Callable[[dict[str, Any], Path], float | None]) -> float | None:
    """A job that one of Hydra's launchers runs, maybe in another process."""
    hydra_config = HydraConfig.get()
    config, problem = resolved(cfg)
    words = without_passing(hydra_config.overrides.task)
    job = Job(hydra_config.job.num, words, config, folder, job_id(config), problem)
    job = sweep.as_submitted(Path(hydra_config.sweep.dir), job)
    try:
        outcome = perform_job(job, Path(hydra_config.sweep.dir), act, job_config)
    except Interrupted as error:
        raise sweep.Stopped(error) from error
    if outcome.failed and config.get("fail_fast") is True:
        raise sweep.Stopped(sweep.Failed(f"run {job.number} failed: {outcome.message}"))
    return outcome.value


def _call_hydra(task: Callable[[DictConfig], Any], argv: list[str], config_name: str) -> None:
    old_argv = sys.argv
    sys.argv = [old_argv[0] if old_argv else "dlrun", *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(task)()
    except OSError as error:  # with a file's name: of the folder that Hydra makes; without: of a misspelt option
        if error.filename is None:
            raise
        raise ConfigError(f"hydra.run.dir: cannot create '{error.filename}' ({error.strerror})") from error
    except (ValueError, TypeError, AssertionError, AttributeError) as error:  # from Hydra alone: ours are kept from it
        if is_users(error):
            raise
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        sys.argv = old_argv


def plain(cfg: Any) -> dict[str, Any]:
    """The composed configuration as plain Python values."""
    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    return config


def perform(config: dict[str, Any], folder: Path, work_begins: Callable[[], None]) -> float | None:
    """Builds and calls the action of a composed configuration."""
    from dlrun.actions import ACTIONS

    check_keys(config)
    action = ACTIONS.build(config["action"])
    work_begins()
    value: float | None = action(config, folder)
    return value
