"""Runs that differ only in values that can be vectorised, trained as one stacked model; each gets the folder of a lone run."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from dlrun import memory, rundir
from dlrun.actions.train import write_origin
from dlrun.build import build_trainer, check
from dlrun.callbacks.progress import Progress
from dlrun.stacking._batches import StackedBatches
from dlrun.stacking._fit import StackedFit
from dlrun.stacking._member import Member
from dlrun.stacking._obstacles import NotStackable, check_trainers
from dlrun.stacking._trial import try_step
from dlrun.sweeps.jobs import Outcome
from dlrun.sweeps.stackable import kind, obstacle
from dlrun.trainer import Trainer

log = logging.getLogger("dlrun")


def train_stacked(
    configs: Sequence[Mapping[str, Any]],
    folders: Sequence[Path],
    reporter: Callable[[int, Outcome], None] | None = None,
) -> list[Outcome]:
    """Trains and tests several runs as one stacked model, from the beginning.

    Each gets its own log, curves, checkpoints and results, as if it had been trained alone, and can be resumed and tested
    alone. One that diverges, fails or stops early leaves the others as they are. Progress bars are left out. After a signal,
    all that are still trained write a checkpoint and end as interrupted, with `code`, the exit code, among the facts.

    Args:
        configs: resolved configurations as plain values.
        folders: of the runs, which exist and hold no run.
        reporter: told of each run that has ended, by its place in `configs`, as soon as it has.

    Returns: how each run ended.

    Raises NotStackable, before anything is written, if they cannot be trained together; each may be trained alone then.
    """
    assert len(configs) == len(folders) > 0, (len(configs), len(folders))
    plain = [_without_auto(config) for config in configs]
    _check_configs(plain)
    start = time.perf_counter()
    with ExitStack() as held:
        try:
            for folder in folders:
                held.enter_context(rundir.lock(folder, "hydra.run.dir"))
                rundir.refuse_used(folder)
            trainers, said = _built(plain, folders)
            held.callback(_close_data, trainers[0])
            check_trainers(trainers)
            try_step(trainers, StackedBatches(trainers).next())
        except NotStackable:
            raise
        except Exception as error:  # of one of them: alone, it says which
            raise NotStackable(" ".join(str(error).split()) or type(error).__name__) from error
        members = [Member(number, trainer, start) for number, trainer in enumerate(trainers)]
        if begun := _begun(members, said, reporter):
            StackedFit(begun, reporter).fit()
    return [member.outcome or Outcome("interrupted") for member in members]


def _without_auto(config: Mapping[str, Any]) -> dict[str, Any]:
    """Stacked parameters are contiguous, whichever format is the fastest for a lone run."""
    trainer = dict(config["trainer"])
    if trainer.get("memory_format", "auto") == "auto":
        trainer["memory_format"] = "contiguous"
    return {**config, "trainer": trainer}


def _check_configs(configs: Sequence[Mapping[str, Any]]) -> None:
    """Raises NotStackable for what the configurations tell."""
    for config in configs:
        if config.get("resume") is not None:
            raise NotStackable("a run that is resumed goes on alone")
        if reason := obstacle(config):
            raise NotStackable(reason)
    if len({kind(config) for config in configs}) > 1:
        raise NotStackable("the runs differ in more than values that can be vectorised")


def _built(
    configs: Sequence[dict[str, Any]], folders: Sequence[Path]
) -> tuple[list[Trainer], list[list[logging.LogRecord]]]:
    """The trainers, which share their data, and what was said of each. Raises ConfigError for a configuration that is wrong."""
    memory.begin_peak()
    trainers: list[Trainer] = []
    said: list[list[logging.LogRecord]] = []
    for config, folder in zip(configs, folders, strict=True):
        check(config)
        with _kept_back() as records:
            trainer = build_trainer(config, folder)
        said.append(records)
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, Progress)]
        if trainers:
            _share_data(trainer, trainers[0])
        trainers.append(trainer)
    trainers[0].run.data.close = lambda: None  # type: ignore[method-assign]  # the others need them still
    return trainers, said


def _share_data(trainer: Trainer, first: Trainer) -> None:
    """Gives a run the data of the first one, with order and augmentation of its own."""
    own, shared = trainer.run.data, copy.copy(first.run.data)
    if own.state_dict() != shared.state_dict():
        raise NotStackable("the data differ")
    shared.seed = own.seed
    shared.close = lambda: None  # type: ignore[method-assign]
    trainer.run.data = shared
    own.close()


def _close_data(trainer: Trainer) -> None:
    data = trainer.run.data
    type(data).close(data)


def _begun(
    members: Sequence[Member],
    said: Sequence[Sequence[logging.LogRecord]],
    reporter: Callable[[int, Outcome], None] | None,
) -> list[Member]:
    """The members whose folders could be written in; the others have ended."""
    begun = []
    for member, records in zip(members, said, strict=True):
        try:
            with member.log():
                for record in records:
                    log.handle(record)
                write_origin(member.trainer, "started", stacked=len(members))
                log.info("trained as one of %d runs in a stacked model", len(members))
            begun.append(member)
        except Exception as error:
            outcome = member.end(error, len(members))
            if reporter:
                reporter(member.number, outcome)
    return begun


class _Records(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def _kept_back() -> Iterator[list[logging.LogRecord]]:
    """Keeps what is logged until there is a log to write it into."""
    handler, level, propagate = _Records(), log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield handler.records
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate
