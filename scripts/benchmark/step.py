"""`step`: microseconds of a step of one linear layer with batch 1, dlrun with logging and progress on over the bare loop."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.ratios import subtract
from benchmark.report import Section, say
from benchmark.turns import Left, Process
from benchmark.workload import LEARNING_RATE, Problem, Workload

TURN, WARM = 10_000, 50  # steps of a turn; its first ones, not counted
FLOOR = 20.0
DLRUN = "dlrun"
BARE = {"bare loop": {}, "bare loop, fused Adam": {"fused": True}}
NOTE = (
    "One process and one linear layer of 64 inputs and 10 outputs (data=digits), batch 1, so that nearly nothing but the "
    "overhead is left. dlrun as it comes (progress bar on a terminal, metrics file, TensorBoard, a point of the curves every "
    f"50 steps) and the bare loops take turns of {TURN:,} steps in random order; a figure is the mean step of a turn without "
    f"its first {WARM}, so that logging and drawing count with the share that they have. Epoch ends are left out."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing but the common settings."""


def measure(options: argparse.Namespace) -> Section:
    """The turns of all three, in a process with a terminal."""
    section = Section("step", "Overhead of a step", NOTE, "bare loop")
    threads = options.threads or 1
    section.threads = threads
    workload = Workload("linear", 1, "digits", options.device, epochs=100_000, threads=threads)
    say("one linear layer, batch 1")
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        process = Process(str(options.rounds), workload, Path(folder), module="benchmark.step")
        try:
            process.ready()
            found = process.turn()
        except Left as error:
            sys.exit(f"step: {error}")
        finally:
            process.close()
    for name, floor in ((DLRUN, FLOOR), *((name, None) for name in BARE)):
        measures = {
            f"over the {base}": subtract(found[name], found[base], "µs", floor if base == "bare loop" else None)
            for base in BARE
        }
        group = f"one linear layer, batch 1, {threads} thread{'s' if threads > 1 else ''}"
        section.rows.append({"group": group, "name": name, "measures": measures})
    return section


class Bare:
    """The bare loop as a thing that can be stopped after any step."""

    def __init__(self, problem: Problem, adam: dict[str, Any]) -> None:
        import copy

        import torch

        self.problem, self.model, self.torch = problem, copy.deepcopy(problem.model).train(), torch
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, **adam)
        self.steps = self._steps()

    def turn(self) -> float:
        """Mean seconds of a step."""
        for _ in range(WARM):
            next(self.steps)
        start = time.perf_counter()
        for _ in range(TURN - WARM):
            next(self.steps)
        return (time.perf_counter() - start) / (TURN - WARM)

    def _steps(self) -> Iterator[None]:
        problem, model, optimizer = self.problem, self.model, self.optimizer
        inputs, targets, batch = problem.inputs, problem.targets, problem.workload.batch
        criterion = self.torch.nn.CrossEntropyLoss()
        while True:
            order = self.torch.randperm(len(targets), device=targets.device)
            total = self.torch.zeros((), device=targets.device)
            for i in range(0, len(order), batch):
                rows = order[i : i + batch]
                optimizer.zero_grad()
                loss = criterion(model(inputs[rows]), targets[rows])
                loss.backward()
                optimizer.step()
                total += loss.detach()
                yield


def run_turns(workload: Workload, rounds: int, folder: Path) -> dict[str, list[float]]:
    """Microseconds of the mean step of each turn, by contestant; the first round is left out."""
    from dlrun.actions.train import train
    from dlrun.callbacks._base import Callback

    problem = Problem.make(workload)
    loops = {name: Bare(problem, adam) for name, adam in BARE.items()}
    found: dict[str, list[float]] = {name: [] for name in (DLRUN, *BARE)}
    chooser = random.Random(0)

    class Turns(Callback):
        """Counts dlrun's steps, and lets the bare loops go between them."""

        steps, seconds, last = 0, 0.0, 0.0

        def on_epoch_start(self, run: Any) -> None:
            self.last = 0.0

        def on_step(self, run: Any, result: Any) -> None:
            now = time.perf_counter()
            if self.last:
                self.steps += 1
                if self.steps > WARM:
                    self.seconds += now - self.last
                if self.steps == TURN:
                    self._others()
                    now = time.perf_counter()
            self.last = now

        def _others(self) -> None:
            paused = time.perf_counter()
            found[DLRUN].append(self.seconds / (TURN - WARM))
            self.steps, self.seconds = 0, 0.0
            for name in chooser.sample(list(loops), len(loops)):
                found[name].append(loops[name].turn())
            if len(found[DLRUN]) > rounds:
                raise Finished
            for bar in bars:  # else it would be drawn in the uncounted steps after each pause, and in no other
                bar._draw_at += time.perf_counter() - paused

    config = workload.config()
    bars: list[Any] = []

    class Bars(Callback):
        """Finds the progress bar of the run."""

        def on_fit_start(self, run: Any) -> None:
            import gc

            from dlrun.callbacks.progress import Progress

            bars.extend(found for found in gc.get_objects() if isinstance(found, Progress))

    with contextlib.suppress(Finished):
        train(config, folder, observers=[Bars(), Turns()])
    return {name: [1e6 * seconds for seconds in values[1:]] for name, values in found.items()}


class Finished(Exception):
    """All rounds are done."""


if __name__ == "__main__":
    from benchmark.pace import Pace

    pace = Pace()
    pace.send({"ready": True})
    sys.stdin.readline()
    asked = Workload.from_json(json.loads(sys.argv[2]))
    pace.send(run_turns(asked, int(sys.argv[1]), Path(sys.argv[3])))
    os._exit(0)
