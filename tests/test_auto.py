"""What `auto` stands for: a table in the repository, read before the first step and written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlrun import auto
from dlrun.build import build_trainer, resolved
from dlrun.models import MODELS

TABLE = [
    {"device": "cpu", "family": "cnn", "batch": 32, "implementation": "foreach", "memory_format": "channels_last"},
    {
        "device": "cpu",
        "family": "cnn",
        "batch": 512,
        "implementation": "for_loop",
        "precision": "bf16",
        "compile": True,
    },
    {"device": "cuda", "family": "mlp", "batch": 128, "precision": "bf16"},
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: Any) -> None:
    """A table of other settings than the defaults."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"rows": TABLE}))
    monkeypatch.setattr(auto, "TABLE", path)
    auto._rows.cache_clear()
    yield
    auto._rows.cache_clear()


def model_of(name: str, **settings: Any) -> nn.Module:
    return MODELS.build({"name": name, **settings}, input_shape=(1, 28, 28), num_outputs=10)


def test_families() -> None:
    """A perceptron has no convolution, a LeNet three, a ResNet of depth 20 nineteen."""
    assert auto.family_of(model_of("mlp")) == "mlp"
    assert auto.family_of(model_of("lenet")) == "cnn"
    assert auto.family_of(model_of("resnet_cifar", depth=20)) == "resnet"


@pytest.mark.parametrize(("batch", "row"), [(1, 0), (127, 0), (129, 1), (4096, 1)])
def test_the_nearest_batch_size_by_ratio(table: None, batch: int, row: int) -> None:
    """Between 32 and 512 the border is at their geometric mean, 128; what a row does not say is the default."""
    assert auto.settings_for("cpu", model_of("lenet"), batch) == {**auto.DEFAULTS, **settings_of(TABLE[row])}


def settings_of(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key in auto.DEFAULTS}


@pytest.mark.parametrize(("device", "name"), [("cpu", "mlp"), ("cuda", "lenet")])
def test_defaults_where_nothing_was_measured(table: None, device: str, name: str) -> None:
    """Another device or family has the defaults."""
    assert auto.settings_for(device, model_of(name), 128) == auto.DEFAULTS


def test_it_is_resolved_and_written_down(table: None, composed: Any, tmp_path: Path) -> None:
    """The built run has the settings of the table, and the configuration that is saved says so; what was given stays."""
    words = ("model=lenet", "data=digits", "data.batch_size=32", "trainer.precision=auto", "trainer.compile=auto")
    trainer = build_trainer(composed(*words), tmp_path)
    assert trainer.run.optimizer.defaults["foreach"] is True
    assert not trainer.run.optimizer.defaults["fused"]
    assert trainer.run.model.c3.conv.weight.is_contiguous(memory_format=torch.channels_last)
    saved = resolved(trainer)
    assert saved["optimizer"]["implementation"] == "foreach"
    assert {name: saved["trainer"][name] for name in ("memory_format", "precision", "compile")} == {
        "memory_format": "channels_last", "precision": "fp32", "compile": False,
    }  # fmt: skip
    given = build_trainer(
        composed(*words, "optimizer.implementation=fused", "trainer.memory_format=contiguous"), tmp_path
    )
    assert given.run.optimizer.defaults["fused"] is True
    assert given.run.model.c3.conv.weight.is_contiguous()


def test_an_optimizer_without_that_implementation(composed: Any, tmp_path: Path) -> None:
    """PyTorch has no fused RMSprop: auto is foreach."""
    saved = resolved(build_trainer(composed("data=digits", "optimizer=rmsprop"), tmp_path))
    assert saved["optimizer"]["implementation"] == "foreach"


def test_the_shipped_table() -> None:
    """Every row of the shipped table names a device, a family and a batch size, and settings that exist."""
    rows = json.loads(auto.TABLE.read_text())["rows"]
    assert rows
    for row in rows:
        assert row["device"] in ("cpu", "cuda")
        assert row["family"] in ("mlp", "cnn", "resnet")
        assert row["batch"] > 0
        assert row["implementation"] in ("fused", "foreach", "for_loop")
        assert row["memory_format"] in ("contiguous", "channels_last")
        assert row["precision"] in ("fp32", "bf16", "fp16")
        assert isinstance(row["compile"], bool)
        assert row["evaluation_batch_size"] > 0


def test_precision_compile_and_evaluation_batch(table: None, composed: Any, tmp_path: Path, monkeypatch: Any) -> None:
    """Likewise for what is not auto by default, and for the size of an evaluation's batches."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    words = ("model=lenet", "data=digits", "data.batch_size=512", "trainer.precision=auto", "trainer.compile=auto")
    trainer = build_trainer(composed(*words), tmp_path)
    saved = resolved(trainer)
    assert trainer.precision == saved["trainer"]["precision"] == "bf16"
    assert saved["trainer"]["compile"] is True
    assert saved["optimizer"]["implementation"] == "for_loop"
    assert trainer.run.data.evaluation_batch_size == saved["data"]["evaluation_batch_size"] == 1024


@pytest.mark.parametrize("action", ["test", "predict"])
def test_a_trained_run_is_read_with_auto(cli: Any, action: str) -> None:
    """An auto that is given on top of a saved run is resolved too."""
    assert cli("model=linear", "data=blobs", "trainer.fast_dev_run=true", "hydra.run.dir=run").rc == 0
    done = cli(f"action={action}", "run=run", "trainer.precision=auto", "trainer.memory_format=auto")
    assert done.rc == 0, done.stderr
