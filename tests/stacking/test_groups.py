"""Which jobs of a sweep are trained together."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dlrun.sweeps.jobs import Job
from dlrun.sweeps.stackable import groups

Config = dict[str, Any]


def jobs(lab: Any, config: Config, *values: Config) -> list[Job]:
    """A job for each set of values."""
    return [
        Job(number, [], lab.varied(config, each), Path(str(number)), str(number)) for number, each in enumerate(values)
    ]


def numbers(found: list[list[Job]]) -> list[list[int]]:
    return [[job.number for job in group] for group in found]


@pytest.fixture
def config(lab: Any) -> Config:
    return lab.config("model=mlp", "regularization=[l2]")


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 1},
        {"optimizer.lr": 0.1},
        {"optimizer.betas": [0.5, 0.9]},
        {"optimizer.weight_decay": 0.1},
        {"regularization.l2.strength": 0.1},
        {"model.dropout": 0.0},
        {"model.init": "he_normal"},
        {"loss.label_smoothing": 0.1},
        {"scheduler": {"name": "constant"}},
        {"scheduler.warmup_epochs": 1.0},
        {"trainer.patience": 3},
        {"trainer.monitor": "val/accuracy"},
        {"trainer.clip_norm": 1.0},
        {"callbacks": {"progress": {"name": "progress"}}},
        {"sweep": "elsewhere"},
    ],
    ids=lambda values: next(iter(values)),
)
def test_may_differ(values: Config, lab: Any, config: Config) -> None:
    """Values that can be vectorised, and settings of the command, keep no runs apart."""
    found, lines = groups(jobs(lab, config, {}, values))
    assert numbers(found) == [[0, 1]]
    assert lines == []


@pytest.mark.parametrize(
    ("values", "differing"),
    [
        ({"model.hidden": [8]}, "model.hidden"),
        ({"model": {"name": "linear"}}, "model.name"),
        ({"data.batch_size": 8}, "data.batch_size"),
        ({"data.split_seed": 1}, "data.split_seed"),
        ({"trainer.epochs": 3}, "trainer.epochs"),
        ({"optimizer": {"name": "sgd", "lr": 0.1}}, "optimizer.name"),
        ({"regularization": {}}, "regularization.l2.name"),
        ({"device": "cuda"}, "device"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_must_be_equal(values: Config, differing: str, lab: Any, config: Config) -> None:
    """What changes shapes, samples or steps keeps runs apart, and one line says so."""
    found, lines = groups(jobs(lab, config, {}, values, {"seed": 1}, {**values, "seed": 2}))
    assert numbers(found) == [[0, 2], [1, 3]]
    assert lines == [f"#1, #3: not stacked with #0: {differing} differs"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"optimizer.name": "lion"}, "optimizer.name=lion; stacking needs adam or adamw or"),
        ({"trainer.swa_start": 0.5}, "trainer.swa_start=0.5; stacking needs null"),
        ({"trainer.compile": True}, "trainer.compile=true; stacking needs false or auto"),
        ({"trainer.cuda_graph": True}, "trainer.cuda_graph=true; stacking needs false"),
        ({"action": {"name": "test"}}, "action.name=test; stacking needs train"),
        ({"model.import": "mine"}, "model imports mine, which may draw random numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_never_stacked(values: Config, reason: str, lab: Any, config: Config) -> None:
    """Runs of another kind are alone, two equal ones too, under one line."""
    found, lines = groups(jobs(lab, config, {}, values, {"seed": 1}, values))
    assert numbers(found) == [[0, 2], [1], [3]]
    assert len(lines) == 1
    assert lines[0].startswith(f"#1, #3: not stacked: {reason}")


def test_a_job_that_cannot_be_resolved(lab: Any, config: Config) -> None:
    """It fails alone, with its own message."""
    made = jobs(lab, config, {}, {"seed": 1})
    made.append(Job(2, [], {}, Path("2"), "2", "no such thing"))
    found, lines = groups(made)
    assert numbers(found) == [[0, 1], [2]]
    assert lines == ["#2: not stacked: no such thing"]


def test_limit(lab: Any, config: Config) -> None:
    """Large groups are split evenly, in their order."""
    made = jobs(lab, config, *({"seed": seed} for seed in range(10)))
    assert numbers(groups(made, 4)[0]) == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert numbers(groups(made, 10)[0]) == [list(range(10))]
    assert numbers(groups(made, 1)[0]) == [[number] for number in range(10)]
    assert groups([]) == ([], [])


def test_no_torch() -> None:
    """The main process of a sweep does not import torch for it."""
    code = "import sys, dlrun.sweeps.stackable; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
