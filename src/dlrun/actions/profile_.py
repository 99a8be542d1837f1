"""Shows where the time of a configuration goes, and which settings would make it faster on this machine."""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt, Le

from dlrun import rundir
from dlrun.actions import ACTIONS
from dlrun.actions import _profile_tables as tables
from dlrun.actions._base import Action
from dlrun.actions._comparison import FAILURES, Comparison
from dlrun.actions._epoch import TimedEpoch, build_timed
from dlrun.actions._operators import trace
from dlrun.actions._turns import TooSlow
from dlrun.actions._variants import variants_of
from dlrun.build import check
from dlrun.device import describe_device
from dlrun.divergence import Diverged
from dlrun.registry import ConfigError

REPORT, TRACE = "profile.json", "trace.json"
IMPORTS, FIRST_STEP, FIRST_LOG = "Python, Hydra, PyTorch", "first step", "its logging"


@ACTIONS.register("profile")
class Profile(Action):
    """Trains for an epoch at most and shows where it goes, then tries which settings are faster here.

    Prints, and writes into the folder as `profile.json`: the start-up; the phases of an epoch (data, forward, backward,
    optimizer, logging, validation, checkpoint, and the loop itself: schedule, finite checks, metrics, averages); the
    operators of a step; how fast variants of the configuration are that differ in one setting, taking turns with it. What
    is trained is thrown away, the test set stays sealed, and no setting is changed. On CUDA the device is waited for
    between two phases, which makes an epoch look longer than it is.

    Args:
        seconds: at most so many of an epoch's steps are timed; about twice as long takes the comparison of the variants.
        compile: also try trainer.compile, which takes up to a minute more.
        trace: write `trace.json`, the operators of some steps, for chrome://tracing or Perfetto.
        variants: try other settings.
    """

    def __init__(
        self,
        *,
        seconds: Annotated[float, Gt(0), Le(3600)] = 10.0,
        compile: bool = False,
        trace: bool = True,
        variants: bool = True,
    ) -> None:
        self.seconds, self.compile, self.trace, self.variants = seconds, compile, trace, variants

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        before = _process_seconds()
        _refuse(config, folder)
        check(config)
        try:
            with (
                rundir.lock(folder, "hydra.run.dir"),
                tempfile.TemporaryDirectory(prefix=".profile-", dir=folder, ignore_cleanup_errors=True) as scratch,
            ):
                report = self._measure(config, folder, Path(scratch), before)
                rundir.write_json(folder / REPORT, report)
        except Diverged:
            rundir.remove_created()
            raise
        return None

    def _measure(self, config: dict[str, Any], folder: Path, scratch: Path, before: float) -> dict[str, Any]:
        """Everything, printed as it comes."""
        console = tables.console()
        started = time.perf_counter()
        (run_folder := scratch / "run").mkdir()
        trainer, building = build_timed(config, run_folder)
        if trainer.whole_set:
            trainer.run.data.close()
            raise ConfigError(
                f"optimizer.name: {config['optimizer']['name']} solves in one update; action=profile has no steps to time"
            )
        building["everything else"] = time.perf_counter() - started - sum(list(building.values())[:-1])
        data, threads = trainer.run.data, torch.get_num_threads()
        report: dict[str, Any] = {"device": describe_device(trainer.run.device), "torch": str(torch.__version__)}
        try:
            timed = TimedEpoch(trainer, self.seconds)
            phases = timed.measure()
            start = {IMPORTS: before, **building, FIRST_STEP: timed.first_step_s, FIRST_LOG: timed.first_log_s}
            report |= {
                "start_up": start,
                "epoch": {"steps": timed.steps_per_epoch, "steps_timed": timed.steps, "phases": phases},
            }
            console.print(tables.start_up_table(start))
            console.print(tables.epoch_table(report["epoch"]))
            streams = data.wait_s > 0
            compared = Comparison(config, data, threads, streams, scratch)
            if self.trace:
                report["operators"] = trace(compared.steps(), folder / TRACE)
                console.print(tables.operators_table(report["operators"]))
                console.print(tables.where(folder / TRACE), soft_wrap=True)
            if self.variants:
                in_steps = sum(
                    phase["seconds"] for name, phase in phases.items() if name not in ("validation", "checkpoint")
                )
                variants = variants_of(trainer, threads, self.compile, phases["data"]["seconds"] / in_steps, streams)
                report |= self._compare(compared, variants, streams)
                _print_comparison(console, report, self.compile)
        finally:
            torch.set_num_threads(threads)
            data.close()
        return report

    def _compare(self, compared: Comparison, variants: list[Any], streams: bool) -> dict[str, Any]:
        """`variants`: a row for each; `suggestions`; or `not_compared`: why."""
        logger = logging.getLogger("dlrun")
        level = logger.level
        logger.setLevel(logging.ERROR)  # what the configuration as given warns of was said before
        try:
            rows = compared.of_steps(variants, 2 * self.seconds)
            with suppress(TooSlow, *FAILURES):
                rows += [] if streams else compared.of_evaluation(self.seconds)
        except TooSlow as error:
            seconds = math.ceil(error.args[0] / 2)
            return {"not_compared": f"steps are slow; comparing variants needs action.seconds={seconds} or more"}
        except FAILURES as error:
            return {"not_compared": str(error).splitlines()[0]}
        finally:
            logger.setLevel(level)
        return {"variants": rows, "suggestions": tables.suggestions(rows, _words())}


def _print_comparison(console: Any, report: dict[str, Any], compiled: bool) -> None:
    if "not_compared" in report:
        console.print(f"no variants: {report['not_compared']}", soft_wrap=True, markup=False)
        return
    console.print(tables.variants_table(report["variants"]))
    for line in tables.advice(report["suggestions"], report["variants"][0]):
        console.print(line, soft_wrap=True, markup=False)
    if not compiled:
        console.print("not tried: trainer.compile=true, which takes longer; add action.compile=true", soft_wrap=True)


def _refuse(config: dict[str, Any], folder: Path) -> None:
    """Raises ConfigError where the action cannot work."""
    for key in ("resume", "run"):
        if config[key] is not None:
            raise ConfigError(f"{key}: not together with action=profile, which trains anew")
    rundir.refuse_used(folder)
    if (folder / REPORT).exists():
        raise ConfigError(
            f"hydra.run.dir: '{folder}' already holds '{REPORT}' of an earlier start; choose a new folder"
        )


def _words() -> list[str]:
    """The overrides of the command line."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def _process_seconds() -> float:
    """How long this process exists; where the system does not say, its CPU seconds."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])  # field 22 of proc(5)
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        age = 0.0
    return age if age > 0 else time.process_time()
