"""The `dlrun` command: Hydra composes the configuration, one place turns every error into one line and an exit code.

| exit code | meaning                                                        |
| 0         | finished                                                       |
| 1         | the configuration or the data is wrong                         |
| 3         | training diverged                                              |
| 4         | a sweep with failed runs                                       |
| 130, 143  | interrupted by Ctrl-C or SIGTERM, after a checkpoint           |

Heavy imports happen inside functions: `--help`, `--cfg`, completion and a misspelt key never import torch.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from dlrun import rundir
from dlrun.arguments import (
    check_groups,
    check_sweep,
    help_text,
    is_quiet,
    quote_paths,
    refuse_shadowing,
    sort_arguments,
)
from dlrun.completion import complete_flag, is_query
from dlrun.registry import ConfigError
from dlrun.saved_run import use_saved_run
from dlrun.settings import config_dir


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGTERM, _terminate)  # while training, the trainer has a handler of its own
    code = run(list(sys.argv[1:] if argv is None else argv))
    if code in (130, 143):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more Ctrl-C finds nothing left to stop
    sys.exit(code)


def _terminate(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def run(argv: list[str]) -> int:
    """Runs the command line and returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(help_text())
        return 0
    if "--version" in argv:
        print(f"dlrun {metadata.version('dlrun')}")
        return 0
    users_choice = os.environ.get("HYDRA_FULL_ERROR")
    asked_for_traceback = users_choice == "1" or "debug=true" in [a.lower() for a in argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # inside this call Hydra shall raise, not print
    rundir.disarm()
    try:
        if is_query(argv) and complete_flag():
            return 0
        return _hydra(quote_paths(sort_arguments(argv)))
    except (SystemExit, KeyboardInterrupt) as error:
        return _leave(error.code if isinstance(error, SystemExit) else 130)
    except Exception as error:
        if is_query(argv):
            return 1
        code = _report(error, argv, asked_for_traceback)
        if code == 1 and _is_users(error):
            rundir.remove_created()
        return code
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if users_choice is not None:
            os.environ["HYDRA_FULL_ERROR"] = users_choice


def _leave(code: Any) -> int:
    """The exit code of a process that a signal (130, 143), argparse (2: wrong flags) or Hydra stopped."""
    if code in (130, 143):
        print(f"dlrun: interrupted (exit code {code})", file=sys.stderr)
        rundir.remove_created()
        return int(code)
    return code if isinstance(code, int) and code != 2 else 1


def _report(error: Exception, argv: list[str], asked_for_traceback: bool) -> int:
    """Prints what went wrong and returns the exit code; errors that are not the user's show their traceback."""
    name = type(error).__name__
    code = {"Diverged": 3, "Interrupted": getattr(error, "code", 130)}.get(name, 1)
    if asked_for_traceback:
        traceback.print_exc()
    if code == 1 and not _is_users(error) and not asked_for_traceback:
        traceback.print_exc()
    print(f"dlrun: {_message(error, argv)}", file=sys.stderr)
    return code


def _is_users(error: Exception) -> bool:
    """Whether the error is about configuration, data or environment: those get one line and no traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from dlrun.suggest import out_of_memory

    return isinstance(error, (ConfigError, HydraException, OmegaConfBaseException, OSError)) or out_of_memory(error)


def _message(error: Exception, argv: list[str]) -> str:
    from dlrun.suggest import explain

    return explain(error, argv)


def _hydra(argv: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.register_new_resolver("dlrun.run_dir", rundir.claim, replace=True)
    refuse_shadowing(argv)
    saved = use_saved_run(argv)
    if not is_quiet(argv):
        rundir.arm()
        check_groups(argv)
        check_sweep(argv)
    errors: list[Exception] = []

    def task(cfg: DictConfig) -> float | None:
        folder = saved or Path(HydraConfig.get().runtime.output_dir)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            from dlrun.sweeps.job import perform_job

            try:
                return perform_job(cfg, folder, perform)
            except Exception as error:  # Interrupted: Hydra would go on with the next job
                raise SystemExit(getattr(error, "code", 1)) from error
        try:
            return perform(plain(cfg), folder)
        except Exception as error:  # kept from Hydra, which would print lines of its own
            errors.append(error)
            return None

    old_argv = sys.argv
    sys.argv = [old_argv[0] if old_argv else "dlrun", *argv]
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="saved_run" if saved else "config")(
            task
        )()
    except (ValueError, TypeError, AssertionError, AttributeError) as error:  # from Hydra alone: ours are in `errors`
        if _is_users(error):
            raise
        raise ConfigError(" ".join(str(error).split())) from error
    finally:
        sys.argv = old_argv
    if errors:
        raise errors[0]
    from dlrun.sweeps.callback import failed_runs

    return 4 if failed_runs() else 0


def plain(cfg: Any) -> dict[str, Any]:
    """The composed configuration as plain Python values."""
    from omegaconf import OmegaConf

    config: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    return config


def perform(config: dict[str, Any], folder: Path) -> float | None:
    """Builds and calls the action of a composed configuration."""
    from dlrun.actions import ACTIONS
    from dlrun.suggest import check_keys

    check_keys(config)
    value: float | None = ACTIONS.build(config["action"])(config, folder)
    return value
