"""Compares variants of a configuration with the configuration as it is given."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dlrun.actions._phases import Instead
from dlrun.actions._turns import Steps, median_with_interval, take_turns
from dlrun.actions._variants import ROUNDING, Variant
from dlrun.build import check
from dlrun.data._memory import free_memory
from dlrun.data._module import DataModule, build_data
from dlrun.divergence import Diverged
from dlrun.registry import ConfigError
from dlrun.spec import Batch
from dlrun.trainer import Trainer

GIVEN, AGAIN = "as given", "as given, again"
SCATTER = "nothing"
GAIN = 1.03  # that the lower end of an interval must reach
FAILURES = (Diverged, torch.OutOfMemoryError, ConfigError)
COPIES = 4  # of the weights in a training: themselves, gradients, two states
Row = dict[str, Any]


class Comparison:
    """Trainers of a configuration and of its variants, taking turns.

    Args:
        config: as given, checked.
        data: of it.
        threads: CPU threads it uses.
        streams: whether worker processes read the data.
        folder: for what trainers write.
    """

    def __init__(self, config: Mapping[str, Any], data: DataModule, threads: int, streams: bool, folder: Path) -> None:
        self.config, self.data, self.threads, self.streams, self.folder = config, data, threads, streams, folder
        self._folders = 0

    def steps(self, variant: Variant | None = None) -> Steps:
        """Training steps of a variant (None: the configuration as given). Raises one of FAILURES."""
        config = dict(self.config) if variant is None else variant.of(self.config)
        check(config)
        threads = variant.value if variant and variant.key == "trainer.threads" else self.threads
        self._folders += 1
        made = Steps(config, self.folder / str(self._folders), self._data(config, variant), threads, self.streams)
        if (
            variant
            and variant.key == "trainer.compile"
            and variant.value
            and made.trainer.forward is made.trainer.run.model
        ):
            raise ConfigError("this model could not be compiled")
        return made

    def of_steps(self, variants: list[Variant], seconds: float) -> list[Row]:
        """What each variant gains in samples a second of training. Raises TooSlow, or ConfigError where copies of the model
        take too much memory."""
        given = self.steps()
        self._check_memory(given.trainer, len(variants) + 2)
        made, failed = {GIVEN: given, AGAIN: self.steps()}, {}
        for variant in variants:
            try:
                made[variant.word] = self.steps(variant)
            except FAILURES as error:
                failed[variant.word] = str(error).splitlines()[0]
        turns = {name: steps.turn for name, steps in made.items()}
        rates, left = take_turns(turns, lambda name, s, rate: made[name].fill(s, rate), seconds, FAILURES)
        notes = {variant.word: variant.changes for variant in variants}
        return rows(rates, notes, failed | left)

    def of_evaluation(self, seconds: float) -> list[Row]:
        """What another batch size gains in validation samples a second. Raises TooSlow."""
        trainer = self.steps().trainer
        run, used = trainer.run, len(next(iter(self.data.split("val"))).indices)
        sizes = [size for size in (used // 2, used * 2) if 0 < size <= run.spec.num_val]
        if not sizes:
            return []
        samples = max(used, *sizes)

        seen = 0

        def some(size: int | None) -> Iterator[Batch]:
            nonlocal seen
            for batch in self.data.split("val", size):
                yield batch
                seen += len(batch.indices)
                if seen >= samples:
                    return

        def evaluate(size: int | None) -> float:
            nonlocal seen
            torch.set_num_threads(self.threads)
            run.data = Instead(self.data, split=lambda _: some(size))  # type: ignore[assignment]
            seen, start = 0, time.perf_counter()
            trainer.evaluate("val")  # ends with numbers, so the device is done
            return seen / (time.perf_counter() - start)

        turns = {f"data.evaluation_batch_size={size}": partial(evaluate, size) for size in sizes}
        both = {GIVEN: partial(evaluate, None), AGAIN: partial(evaluate, None)}
        rates, left = take_turns({**both, **turns}, lambda *_: None, seconds, FAILURES)
        return [row for row in rows(rates, dict.fromkeys(turns, ROUNDING), left) if row["setting"] != AGAIN]

    def _data(self, config: Mapping[str, Any], variant: Variant | None) -> DataModule:
        """The data of a variant; what was read is shared where the variant leaves it as it is."""
        if variant is None or not variant.key.startswith("data."):
            return self.data
        if variant.key == "data.batch_size":
            data = copy.copy(self.data)
            data.batch_size = variant.value
            return data
        return build_data(config["data"], seed=config["seed"], device=self.data.device, state=self.data.state_dict())

    def _check_memory(self, trainer: Trainer, copies: int) -> None:
        device = trainer.run.device
        needed = COPIES * copies * sum(p.numel() * p.element_size() for p in trainer.run.model.parameters())
        if needed > free_memory(device) / 2:
            raise ConfigError(f"{copies} copies of the model and its optimizer do not fit into the memory")


def rows(rates: Mapping[str, list[float]], notes: Mapping[str, str], failed: Mapping[str, str]) -> list[Row]:
    """`setting`, `changes` and, of those left out, `why`; else how many times as fast as the configuration as given it was in
    the same round, as `speed` (median), `low`, `high` (90 % interval) and `rounds`, whether that is a `gain`, and the
    median of `samples_per_s`. `rates`: GIVEN, AGAIN and the variants; with GIVEN, AGAIN itself is compared, the variants
    with the mean of both.
    """
    if AGAIN not in rates:
        raise ConfigError(f"a second training beside the first failed: {failed.get(AGAIN, 'it went wrong')}")
    given, again = rates[GIVEN], rates[AGAIN]
    both = [(one + other) / 2 for one, other in zip(given, again, strict=False)]
    found: list[Row] = []
    for name, values in rates.items():
        if name == GIVEN:
            continue
        base = given if name == AGAIN else both
        ratios = [value / of_base for value, of_base in zip(values, base, strict=False)]
        speed, low, high = median_with_interval(ratios)
        row = {"setting": name, "changes": notes.get(name, SCATTER), "speed": speed, "low": low, "high": high}
        gain = name in notes and low >= GAIN
        found.append(row | {"rounds": len(ratios), "gain": gain, "samples_per_s": statistics.median(values)})
    return found + [{"setting": name, "changes": notes.get(name, ""), "why": why} for name, why in failed.items()]
