"""Which settings may make a configuration faster here, and what each of them changes besides."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from torch import nn

from dlrun.build import MAX_THREADS
from dlrun.data import DATASETS
from dlrun.optimizers import OPTIMIZERS
from dlrun.trainer import TRAINERS, Trainer

NOTHING, ROUNDING, RESULTS, OTHER = "no number", "last bits", "results", "experiment"
WAITING = 0.2  # of the time of the steps spent on data, from which on the settings of the loader are looked at


@dataclass(frozen=True)
class Variant:
    """The configuration with one setting changed: its dotted key, the value, and what it changes in the results."""

    key: str
    value: Any
    changes: str

    @property
    def word(self) -> str:
        """As it is typed."""
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{self.key}={value}"

    def of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration with it."""
        group, name = self.key.split(".")
        return {**config, group: {**config[group], name: self.value}}


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def variants_of(trainer: Trainer, threads: int, compile: bool, waiting: float, streams: bool) -> list[Variant]:
    """Those worth trying for the configuration of `trainer`.

    Args:
        trainer: built from it.
        threads: CPU threads it uses.
        compile: whether compiling, which takes long, may be tried.
        waiting: share of the time of its steps that it spent on data.
        streams: whether worker processes read the data.
    """
    run = trainer.run
    settings, compiled = TRAINERS.check(run.config["trainer"]), trainer.forward is not run.model
    if streams and waiting > WAITING:
        return [*_of_loader(run.config["data"]), *_of_threads(threads)]
    found = [*_of_optimizer(run.config["optimizer"]), *_of_threads(threads)]
    if compiled or compile:
        found.append(Variant("trainer.compile", not compiled, ROUNDING))
    if compile or not compiled:  # each of these is another graph to compile
        found += [*_of_model(trainer), *_of_batch(trainer)]
    if run.device.type == "cuda" and settings.get("cuda_graph") is False:
        found.append(Variant("trainer.cuda_graph", True, ROUNDING))
    return found


def _of_optimizer(node: Mapping[str, Any]) -> Iterable[Variant]:
    setting = OPTIMIZERS.settings(node["name"]).get("implementation")
    used = node.get("implementation", setting and setting.default)
    for name in ("fused", "foreach"):
        if setting and name in get_args(setting.annotation) and name != used:
            yield Variant("optimizer.implementation", name, ROUNDING)


def _of_threads(used: int) -> Iterable[Variant]:
    most = min(cores(), MAX_THREADS)
    for number in sorted({1, max(1, most // 4), max(1, most // 2), most} - {used}):
        yield Variant("trainer.threads", number, ROUNDING)


def _of_model(trainer: Trainer) -> Iterable[Variant]:
    if any(isinstance(module, nn.Conv2d | nn.ConvTranspose2d) for module in trainer.run.model.modules()):
        other = "contiguous" if trainer.channels_last else "channels_last"
        yield Variant("trainer.memory_format", other, ROUNDING)
    yield Variant("trainer.precision", "bf16" if trainer.precision == "fp32" else "fp32", RESULTS)


def _of_batch(trainer: Trainer) -> Iterable[Variant]:
    size = trainer.run.data.batch_size
    for factor in (2, 4):
        if factor * size <= trainer.run.spec.num_train:
            yield Variant("data.batch_size", factor * size, OTHER)


def _of_loader(node: Mapping[str, Any]) -> Iterable[Variant]:
    settings = DATASETS.settings(node["name"])
    used = node.get("workers", settings["workers"].default)
    used = min(16, cores()) if used == "auto" else used
    for number in sorted({max(1, cores() // 2), cores(), 2 * cores()} - {used}):
        yield Variant("data.workers", number, NOTHING)
    if "prefetch_factor" in settings:
        yield Variant("data.prefetch_factor", 4 * node.get("prefetch_factor", 2), NOTHING)
    if node.get("loader") == "streaming":
        yield Variant("data.loader", "auto", NOTHING)
