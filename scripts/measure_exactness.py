"""What exactness costs, in one process and one thread: microseconds a step, milliseconds a checkpoint.

python scripts/measure_exactness.py               # about three minutes; --rounds 20 for a quick look

Two kinds of figures for a step. `alone`: each part called in a tight loop. `in a step`: a bare PyTorch loop, the same
loop with the parts added one after another, and dlrun's trainer take turns of a few steps each, in an order drawn anew
each round; a figure is the median over the rounds of (median of the turn - median of the bare turn of this round).
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from dlrun import checkpoint, rundir, streams
from dlrun.build import build_trainer, check
from dlrun.callbacks._base import Callback, Run
from dlrun.data import DATASETS
from dlrun.data._base import Samples, Source
from dlrun.divergence import GradientCheck
from dlrun.metrics._sums import EpochSums
from dlrun.models._dropout import DropoutKeys
from dlrun.settings import config_dir
from dlrun.spec import StepResult, TargetSpec
from dlrun.trainer import Trainer

TURN, WARM = 20, 4  # steps of a turn; its first ones, not counted
BATCH = 32
MODELS = ("linear", "lenet")
PARTS = ("streams", "finite check", "bookkeeping")


@DATASETS.register("random_images")
class RandomImages(Source):
    """4,096 random grey images of 28x28 in 10 classes: nothing is read from the disk."""

    def train(self) -> tuple[Samples, TargetSpec]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (4096, 1, 28, 28), dtype=torch.uint8, generator=generator)
        return Samples(images, torch.arange(4096) % 10), TargetSpec("class", 10)


def make_trainer(model: str, folder: Path, *overrides: str) -> Trainer:
    """The trainer of `dlrun model=... data=mnist` on random images, without callbacks."""
    words = [f"model={model}", "data=mnist", "data.name=random_images", "device=cpu", "callbacks=none"]
    words += ["trainer.threads=1", "trainer.log_every_steps=1000000", "trainer.epochs=1000000", *overrides]
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(compose("config", overrides=words), resolve=True)
    check(config)
    folder.mkdir(parents=True, exist_ok=True)
    return build_trainer(config, folder)


class Bare:
    """The training of `trainer` as a plain loop on a copy of its model: batches by index gather, dropout with a fixed key.

    Attributes:
        parts: what a step of the trainer does for exactness, by name; each takes the loss.
    """

    def __init__(self, trainer: Trainer) -> None:
        run, source = trainer.run, RandomImages().train()[0]
        self.trainer, self.model, self.transform = trainer, copy.deepcopy(run.model).train(), run.data.transform
        self.optimizer = type(run.optimizer)(self.model.parameters(), **run.optimizer.defaults)
        self.loss = torch.nn.CrossEntropyLoss()
        self.inputs, self.targets = source.inputs, source.targets
        self.rows = self._rows()
        self.dropout_keys, self.gradients = DropoutKeys(self.model, 0), GradientCheck(list(self.model.parameters()))
        self.sums, self.counters, self.now, self.value = EpochSums(), [0, 0, 0], 0.0, 0.0
        self.parts = dict(zip(PARTS, (self._streams, self._finite_check, self._bookkeeping), strict=True))

    def _rows(self) -> Iterator[torch.Tensor]:
        while True:
            yield from torch.randperm(len(self.inputs)).split(BATCH)

    def _streams(self, loss: torch.Tensor | None) -> None:
        step = self.counters[0]
        self.dropout_keys.fill(step)
        streams.Stream(0, "task", step)
        self.counters[0] = step + 1  # here too, so that each step has keys of its own

    def _finite_check(self, loss: torch.Tensor) -> None:
        self.gradients.add()
        self.value = loss.item()
        if not (math.isfinite(self.value) and not self.gradients.failed()):
            raise RuntimeError

    def _bookkeeping(self, loss: torch.Tensor) -> None:
        self.counters[1] += 1
        self.counters[2] += BATCH
        self.sums.add(self.value, self.value, BATCH)
        self.now = time.perf_counter()
        if self.trainer.signals.arrived or self.trainer._checkpoint_due(self.now):
            raise RuntimeError

    def turn(self, parts: tuple[str, ...]) -> list[float]:
        """Seconds of TURN steps with these parts of exactness."""
        seconds, last = [], time.perf_counter()
        for _ in range(TURN):
            rows = next(self.rows)
            inputs, targets = self.transform(self.inputs.index_select(0, rows)), self.targets.index_select(0, rows)
            self.optimizer.zero_grad(set_to_none=True)
            if "streams" in parts:
                self._streams(None)
            loss = self.loss(self.model(inputs), targets)
            loss.backward()
            loss = loss.detach()
            if "finite check" in parts:
                self._finite_check(loss)
            self.optimizer.step()
            if "bookkeeping" in parts:
                self._bookkeeping(loss)
            now = time.perf_counter()
            seconds.append(now - last)
            last = now
        return seconds


class Turns(Callback):
    """Lets the bare loops take their turns between those of the trainer."""

    def __init__(self, trainer: Trainer, rounds: int) -> None:
        self.bare, self.rounds, self.chooser = Bare(trainer), rounds, random.Random(0)
        self.seconds: list[float] = []
        self.ladder = {"bare": (), **{f"+ {PARTS[i]}": PARTS[: i + 1] for i in range(len(PARTS))}}
        self.medians: dict[str, list[float]] = {name: [] for name in (*self.ladder, "trainer")}
        self.last: float | None = None

    def on_epoch_start(self, run: Run) -> None:
        self.last = None

    def on_step(self, run: Run, result: StepResult) -> None:
        now = time.perf_counter()
        if self.last is not None:
            self.seconds.append(now - self.last)
        if len(self.seconds) == TURN:
            self._note("trainer", self.seconds)
            self.seconds = []
            for name in self.chooser.sample(list(self.ladder), len(self.ladder)):
                self._note(name, self.bare.turn(self.ladder[name]))
            if len(self.medians["bare"]) == self.rounds:
                raise Finished
        self.last = time.perf_counter()

    def _note(self, name: str, seconds: list[float]) -> None:
        self.medians[name].append(1e6 * statistics.median(seconds[WARM:]))


class Finished(Exception):
    """All rounds are done."""


def quartiles(values: list[float]) -> str:
    """`median [lower quartile, upper quartile]`."""
    lower, middle, upper = statistics.quantiles(values, n=4)
    return f"{middle:9.2f} [{lower:.2f}, {upper:.2f}]"


def measure_steps(model: str, rounds: int, folder: Path) -> None:
    """Prints both kinds of figures of a model's step."""
    trainer = make_trainer(model, folder / model)
    turns = Turns(trainer, rounds)
    trainer.callbacks.append(turns)
    with contextlib.suppress(Finished):
        trainer.fit()
    print(f"\n{model}: microseconds a step, batch {BATCH}; median [quartiles]")
    loss, all_parts = torch.tensor(1.0), turns.bare.parts
    alone: dict[str, list[float]] = {name: [] for name in all_parts}
    for _ in range(100):
        for name, part in all_parts.items():
            alone[name].append(1e6 * timeit.timeit(lambda part=part: part(loss), number=256) / 256)  # type: ignore[misc]
    alone["all of them"] = [sum(values) for values in zip(*alone.values(), strict=True)]
    for name, microseconds in alone.items():
        print(f"  alone       {name:<16}{quartiles(microseconds)}  smallest {min(microseconds):.2f}, n = 100 x 256")
    bare = turns.medians.pop("bare")
    print(f"  in a step   {'bare loop':<16}{quartiles(bare)}  n = {rounds} x {TURN - WARM}")
    for name, medians in turns.medians.items():
        more = [a - b for a, b in zip(medians, bare, strict=True)]
        print(f"  in a step   {name:<16}{quartiles(more)}  more than the bare loop")
    print("  (the trainer's step has metrics, schedule, callbacks and the data pipeline as well)")


def measure_checkpoint(count: int, folder: Path) -> None:
    """Prints the milliseconds of a LeNet checkpoint: the whole state to the disk, read back, its predecessor kept."""
    trainer = make_trainer("lenet", folder / "checkpoints", "trainer.steps=20")
    trainer.fit()
    path = trainer.run.folder / rundir.LAST
    payload = path.read_bytes()
    found: dict[str, list[float]] = {"trainer.save_last": [], "state_dict": [], "write + fsync alone": []}

    def plain_write() -> None:
        with open(path.with_name("plain"), "wb", buffering=0) as file:
            file.write(payload)
            os.fsync(file.fileno())

    calls: tuple[Callable[[], Any], ...] = (trainer.save_last, trainer.state_dict, plain_write)
    for _ in range(count):
        for name, call in zip(found, calls, strict=True):
            start = time.perf_counter()
            call()
            found[name].append(1e3 * (time.perf_counter() - start))
    start = time.perf_counter()
    assert checkpoint.load_last(path) is not None
    loading = 1e3 * (time.perf_counter() - start)
    print(f"\nlenet checkpoint, {len(payload) / 1024:.0f} KiB: milliseconds; median [quartiles], n = {count}")
    for name, milliseconds in found.items():
        print(f"  {name:<28}{quartiles(milliseconds)}  largest {max(milliseconds):.1f}")
    print(f"  {'load_last, once':<28}{loading:9.2f}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="What exactness costs.")
    parser.add_argument("--models", nargs="*", default=MODELS, help="whose steps are measured")
    parser.add_argument("--rounds", type=int, default=300, help="turns of each loop")
    parser.add_argument("--checkpoints", type=int, default=100, help="checkpoints written")
    parser.add_argument("--folder", type=Path, default=Path.cwd(), help="on the disk to be measured")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    print(f"{model[0].split(':')[1].strip() if model else platform.processor()}, {os.cpu_count()} cores, 1 thread used")
    print(f"Python {sys.version.split()[0]}, PyTorch {torch.__version__}; load average {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for name in arguments.models:
            measure_steps(name, arguments.rounds, Path(folder))
        measure_checkpoint(arguments.checkpoints, Path(folder))


if __name__ == "__main__":
    main()
