"""Stacked runs and their lone twins."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dlrun import checkpoint, rundir
from dlrun.build import build_trainer
from dlrun.stacking._batches import StackedBatches
from dlrun.stacking._fit import StackedFit
from dlrun.stacking._member import Member
from dlrun.stacking._obstacles import check_trainers
from dlrun.stacking._trial import try_step
from dlrun.sweeps.jobs import Outcome
from dlrun.trainer import Trainer

SHORT = (
    "device=cpu", "data=digits", "data.batch_size=16", "data.limit_train=160", "data.limit_val=32", "data.limit_test=32",
    "callbacks=none", "trainer.steps=60", "trainer.threads=1", "trainer.memory_format=contiguous",
)  # fmt: skip


_known: dict[tuple[str, ...], dict[str, Any]] = {}  # composing takes longer than many a test


class Lab:
    """What the tests of this folder have in common."""

    mlp = ("model=mlp", "model.hidden=[24,16]", "model.batch_norm=true", "model.dropout=0.2")
    lenet = ("model=lenet", "model.dropout=0.25")
    short = SHORT

    def __init__(self, composed: Callable[..., dict[str, Any]], folder: Path) -> None:
        self.composed, self.folder = composed, folder

    def config(self, *words: str) -> dict[str, Any]:
        """A small configuration on the CPU with one thread."""
        if words not in _known:
            _known[words] = self.composed(*SHORT, *words)
        return copy.deepcopy(_known[words])

    @staticmethod
    def varied(config: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """A copy of a configuration with other values by dotted key; nodes that are missing are made."""
        made = copy.deepcopy(config)
        for key, value in values.items():
            *nodes, last = key.split(".")
            node = made
            for name in nodes:
                node = node.setdefault(name, {})
            node[last] = value
        return made

    def build(self, config: dict[str, Any], name: str, double: bool = False) -> Trainer:
        """A trainer in the new folder `name`; `double`: with everything in float64."""
        path = self.folder / name
        path.mkdir(parents=True)
        trainer = build_trainer(config, path)
        if not double:
            return trainer
        trainer.run.model.double()
        data = trainer.run.data
        epoch, split = data.epoch, data.split

        def doubled(batches: Any) -> Any:
            return (batch._replace(inputs=batch.inputs.double()) for batch in batches)

        data.epoch = lambda *a, **k: doubled(epoch(*a, **k))  # type: ignore[method-assign]
        data.split = lambda *a, **k: doubled(split(*a, **k))  # type: ignore[method-assign]
        return trainer

    def stack(
        self, configs: Sequence[dict[str, Any]], name: str = "stack", double: bool = False, at_once: bool | None = None
    ) -> list[Outcome]:
        """Trains configurations as one stack, in the folders `<name>/0`, `<name>/1`, ..."""
        trainers = [self.build(config, f"{name}/{number}", double) for number, config in enumerate(configs)]
        return self.fit(trainers, at_once)

    @staticmethod
    def fit(trainers: Sequence[Trainer], at_once: bool | None = None) -> list[Outcome]:
        """Trains ready trainers as one stack."""
        check_trainers(trainers)
        try_step(trainers, StackedBatches(trainers).next())
        members = [Member(number, trainer, time.perf_counter()) for number, trainer in enumerate(trainers)]
        StackedFit(members, at_once=at_once).fit()
        assert all(member.outcome for member in members)
        return [member.outcome for member in members if member.outcome]

    def state(self, name: str) -> dict[str, Any]:
        """The last checkpoint of the run in a folder."""
        return checkpoint.load(self.folder / name / rundir.LAST)

    def weights(self, name: str) -> Tensor:
        """All trained parameters of a run's last checkpoint and its batch-norm statistics, as one vector."""
        model = self.state(name)["model"]
        return torch.cat([tensor.reshape(-1) for tensor in model.values() if tensor.is_floating_point()])

    @staticmethod
    def distance(one: Tensor, other: Tensor) -> float:
        """Relative to the norm of the other."""
        return float((one - other).norm() / other.norm())


@pytest.fixture
def lab(composed: Callable[..., dict[str, Any]], tmp_path: Path) -> Lab:
    """See `Lab`; its folders lie in `tmp_path`."""
    return Lab(composed, tmp_path)
