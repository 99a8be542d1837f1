"""Loops of several configurations that take turns in one process, so that whatever else the machine does meets all alike."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from dlrun import build
from dlrun.actions._phases import Instead, replaced
from dlrun.data._module import DataModule
from dlrun.data._store import count_workers
from dlrun.spec import Batch
from dlrun.trainer import Trainer

ROUNDS, FEWEST = 15, 5
LEVEL = 0.9
TURN, SHORTEST = 20, 3  # steps


class Steps:
    """Training steps of a configuration, without callbacks, as many at a time as asked for.

    Args:
        config: checked.
        folder: of its own; checkpoints go there where the device asks for some.
        data: of the configuration.
        threads: CPU threads of its turns.
        streams: worker processes read the data; they end with each turn, since they would work during those of others.
    """

    def __init__(self, config: Mapping[str, Any], folder: Path, data: DataModule, threads: int, streams: bool) -> None:
        folder.mkdir()
        with replaced(build, "build_data", lambda node, **_: data):
            self.trainer: Trainer = build.build_trainer(endless(config), folder)
        self.data, self.threads, self.streams = data, threads, streams
        run = self.trainer.run
        run.data = Instead(data, epoch=self._epoch)  # type: ignore[assignment]
        run.steps_per_epoch = run.total_steps = sys.maxsize
        self.between: Callable[[], Any] | None = None  # called after every step
        self.batches = self._endless()
        self.steps, self.warm = SHORTEST, 1
        self.rate = 0.0

    def turn(self) -> float:
        """Takes `warm` steps and then `steps`, which are timed together. Returns their samples per second."""
        torch.set_num_threads(self.threads)
        self.trainer.batch = 0
        try:
            self.trainer._train_epoch()
        finally:
            self.trainer._end_saving()
            if self.streams:
                self.batches.close()
                self.data.close()
                self.batches = self._endless()
        return self.rate

    def fill(self, seconds: float, rate: float) -> None:
        """Makes the turns to come about so long, given the samples per second of an earlier one."""
        steps = max(SHORTEST, round(seconds * rate / self.data.batch_size))
        self.warm = max(1, steps // 5)
        self.steps = max(SHORTEST - 1, steps - self.warm)
        if self.streams:  # what workers have read ahead by the end of the warm-up would be counted as read for nothing
            ahead = count_workers(self.data.settings) * self.data.settings.prefetch_factor
            self.warm, self.steps = max(self.warm, ahead), max(self.steps, 2 * ahead)

    def _endless(self) -> Generator[Batch]:
        for epoch in itertools.count(self.trainer.run.step if self.streams else 0):
            yield from self.data.epoch(epoch)

    def _epoch(self, *_: Any) -> Iterator[Batch]:
        start, samples = 0.0, 0
        for number in range(self.warm + self.steps):
            if number == self.warm:
                start, samples = self._now(), 0
            batch = next(self.batches)
            samples += len(batch.indices)
            yield batch
            if self.between:
                self.between()
        self.rate = samples / max(self._now() - start, 1e-9)

    def _now(self) -> float:
        if self.trainer.run.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def endless(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with a schedule that does not end soon, without callbacks and checkpoints."""
    trainer = {"epochs": 1_000_000, "steps": None, "checkpoint_every_steps": None, "fast_dev_run": False}
    return {**config, "callbacks": {}, "trainer": {**config["trainer"], **trainer}}


class TooSlow(Exception):
    """Comparing would take longer than there is time. Its argument is how many seconds are needed."""


def take_turns(
    turns: Mapping[str, Callable[[], float]],
    fill: Callable[[str, float, float], None],
    seconds: float,
    failures: tuple[type[Exception], ...],
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Rates of each, round by round, in an order drawn anew each round; and why some were left out.

    Args:
        turns: name to a function that takes a turn and returns its rate; the first is what the others are compared with.
        fill: told name, seconds of a turn to come, and the rate in a first turn, which does not count.
        seconds: about how long all of it may take; twice that at most.
        failures: exceptions that leave one out, unless it is the first.

    Raises TooSlow.
    """
    base, names, left = next(iter(turns)), list(turns), dict[str, str]()
    rates: dict[str, list[float]] = {name: [] for name in names}

    def take(name: str, count: bool) -> float:
        try:
            rate = turns[name]()
        except failures as error:
            if name == base:
                raise
            names.remove(name)
            del rates[name]
            left[name] = next(iter(str(error).splitlines()), type(error).__name__)
            return 0.0
        if count:
            rates[name].append(rate)
        return rate

    first: dict[str, float] = {}
    for name in list(turns):
        take(name, False)  # with all that is done once
        took = []
        for _ in range(3 if name == base else 1):
            start = time.perf_counter()
            first[name] = take(name, False) if name in names else 0.0
            took.append(time.perf_counter() - start)
        needed = (FEWEST + 2) * len(turns) * min(took)
        if name == base and needed > 2 * seconds:
            raise TooSlow(needed / 2)
    for name in names:
        fill(name, seconds / ROUNDS / len(names), first[name])
    end, chooser = time.perf_counter() + seconds, random.Random(0)
    for number in range(ROUNDS):
        if number >= FEWEST and time.perf_counter() > end:
            break
        for name in chooser.sample(names, len(names)):
            take(name, True)
    return rates, left


def median_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the narrowest pair of order statistics that holds the true one in at least 90 % of cases (the
    smallest and largest value, where there are fewer than five)."""
    ordered, n = sorted(values), len(values)
    outside, k = 0.0, 0  # k values may be left out at either end
    while k < (n - 1) // 2 and (outside := outside + 2 * math.comb(n, k) / 2**n) <= 1 - LEVEL:
        k += 1
    k = max(0, k - 1)
    return statistics.median(ordered), ordered[k], ordered[n - 1 - k]
