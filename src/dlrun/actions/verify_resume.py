"""Proves for a user's own configuration that stopping and resuming changes nothing."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge

from dlrun import rundir, streams
from dlrun.actions import ACTIONS
from dlrun.actions._base import Action
from dlrun.actions._contents import read_run
from dlrun.actions._identical import Difference, compare
from dlrun.actions._processes import Processes, Stop
from dlrun.actions._traces import first_difference
from dlrun.build import check
from dlrun.registry import ConfigError

REPORT = "verify_resume.json"
SHOWN = 20  # differences in the report


@ACTIONS.register("verify_resume")
class VerifyResume(Action):
    """Trains the configuration twice, once whole and once stopped and resumed in new processes, and compares everything.

    The stops are steps drawn from `seed`, at least one each in the first and in the last epoch; every other one is a
    SIGTERM, which writes a checkpoint at that very step, the rest SIGKILL, after which the run goes on from an earlier
    one. Checkpoints, metric lines, TensorBoard events and results must then be the same bit for bit, all but times. The
    two runs stay in `whole/` and `resumed/` of the action's folder, beside the report `verify_resume.json`.

    Args:
        stops: how often the second run is stopped.

    Raises ConfigError, naming the step and the weights at which the two runs first differ, if they do.
    """

    def __init__(self, *, stops: Annotated[int, Ge(1)] = 3) -> None:
        self.stops = stops

    def __call__(self, config: dict[str, Any], folder: Path) -> float | None:
        _refuse(config, folder)
        check(config)
        with rundir.lock(folder, "hydra.run.dir"):
            processes = Processes(config, folder)
            whole = processes.train_whole()
            stops = draw_stops(config["seed"], self.stops, whole.steps, whole.steps_per_epoch)
            plan = f"stops after steps {', '.join(str(stop.step) for stop in stops)} of {whole.steps}"
            print(plan, flush=True)
            resumed = processes.train_stopped(stops)
            contents = [read_run(run) for run in (processes.whole, processes.resumed)]
            differences = compare(*contents)
            first = first_difference(whole, resumed) or (str(differences[0]) if differences else None)
            report: dict[str, Any] = {
                "identical": first is None,
                "first_difference": first,
                "steps": whole.steps,
                "stops": [
                    {"step": s.step, "signal": s.name, "went_on_from": t.start} for s, t in _pairs(stops, resumed)
                ],
                "compared": {file: len(entries) for file, entries in contents[0].items() if entries is not None},
                "differences": [vars(difference) for difference in differences[:SHOWN]],
            }
            rundir.write_json(folder / REPORT, report)
            _print_table(report["compared"], differences)
        if first is not None:
            raise ConfigError(f"verify_resume: not identical; first difference: {first} (report: {folder / REPORT})")
        print(f"identical; {plan} ({folder / REPORT})")
        return None


def _pairs(stops: list[Stop], resumed: list[Any]) -> list[tuple[Stop, Any]]:
    """Every stop with the process that went on after it."""
    return list(zip(stops, resumed[1:], strict=False))


def draw_stops(seed: int, count: int, steps: int, steps_per_epoch: int) -> list[Stop]:
    """At most `count` distinct steps from 1 to `steps`, sorted, with signals in turn: one in the first epoch and, from two
    on, one in the last; the others anywhere. The same seed gives the same steps."""
    order = (1 + torch.randperm(steps, generator=streams.generator(seed, "verify_resume"))).tolist()
    last_epoch = (steps - 1) // steps_per_epoch * steps_per_epoch
    chosen = [next(step for step in order if step <= steps_per_epoch)] if count > 1 else order[:1]
    if count > 1 and (late := next((step for step in order if step > last_epoch and step not in chosen), None)):
        chosen.append(late)
    chosen += [step for step in order if step not in chosen][: count - len(chosen)]
    signals = (signal.SIGTERM, signal.SIGKILL)
    return [Stop(step, signals[number % 2]) for number, step in enumerate(sorted(chosen))]


def _refuse(config: dict[str, Any], folder: Path) -> None:
    """Raises ConfigError where the action cannot work."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    for key in ("resume", "run"):
        if config[key] is not None:
            raise ConfigError(f"{key}: not together with action=verify_resume, which makes runs of its own")
    if HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ConfigError("action: verify_resume is not for sweeps; leave -m away")
    rundir.refuse_used(folder)
    for name in ("whole", "resumed"):
        if (folder / name).exists():
            raise ConfigError(
                f"hydra.run.dir: '{folder}' already holds '{name}' of an earlier start; choose a new folder"
            )


def _print_table(compared: dict[str, int], differences: list[Difference]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="whole run against resumed run", title_justify="left")
    for column, justify in (("file", "left"), ("values", "right"), ("different", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for file in dict.fromkeys([*compared, *(difference.file for difference in differences)]):
        unlike = sum(difference.file == file for difference in differences)
        table.add_row(file, str(compared.get(file, 0)), str(unlike) if unlike else "none")
    Console().print(table)
