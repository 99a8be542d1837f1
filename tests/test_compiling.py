"""`trainer.compile`: the same training, resumed exactly, and a run that goes on where the model cannot be compiled."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlrun import checkpoint, rundir
from dlrun.build import build_trainer, resolved
from dlrun.callbacks._base import Callback
from dlrun.trainer import Trainer
from dlrun.trainer._compiling import compiled
from dlrun.trainer._max_pooling import keep_max_pooling

WORDS = (
    "optimizer=momentum",
    "device=cpu",
    "data=digits",
    "data.batch_size=256",
    "callbacks=none",
    "trainer.epochs=2",
    "trainer.compile=true",
)
MODEL = ("model=mlp", "model.hidden=[16]", "model.dropout=0.3", "model.batch_norm=true")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


@pytest.fixture
def make(composed: Any, tmp_path: Path) -> Any:
    """A trainer in a folder of its own."""

    def build(folder: str, *overrides: str) -> Trainer:
        (tmp_path / folder).mkdir(exist_ok=True)
        return build_trainer(composed(*WORDS, *MODEL, *overrides), tmp_path / folder)

    return build


class Kill(Callback):
    """Ends the run at update 5, the last checkpoint being that of update 4."""

    def on_step(self, run: Any, result: Any) -> None:
        if run.step == 5:
            raise KeyboardInterrupt


@needs_compiler
def test_resumes_exactly_and_trains_alike(make: Any) -> None:
    """A compiled run that is killed and resumed gives the weights of one never stopped; an uncompiled one about the same."""
    whole = make("whole")
    assert whole.forward is not whole.run.model
    assert resolved(whole)["trainer"]["compile"] is True
    whole.fit()
    stopped = make("stopped", "trainer.checkpoint_every_steps=4")
    stopped.callbacks = [Kill()]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = make("stopped")
    state = checkpoint.load_last(resumed.run.folder / rundir.LAST)
    assert state is not None
    assert state["counters"]["step"] == 4
    resumed.load_state_dict(state)
    resumed.fit()
    plain = make("plain", "trainer.compile=false")
    plain.fit()
    for name, tensor in whole.run.model.state_dict().items():
        assert torch.equal(tensor, resumed.run.model.state_dict()[name]), name
        torch.testing.assert_close(tensor, plain.run.model.state_dict()[name], rtol=1e-3, atol=1e-4)


class Normed(nn.Module):
    """Batch norm, whose statistics any forward pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)


def test_a_trial_leaves_no_trace(monkeypatch: Any) -> None:
    """Statistics of batch norm, gradients and the training mode are as before the trial."""
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)
    model = Normed().train()
    assert compiled(model, torch.zeros(4, 3), "fp32") is not None
    assert model.norm.running_mean.tolist() == [0, 0, 0]
    assert int(model.norm.num_batches_tracked) == 0
    assert model.norm.weight.grad is None
    assert model.training


def test_other_sizes_go_through_the_model(monkeypatch: Any) -> None:
    """Only batches of the full size meet the compiled model."""
    seen: list[int] = []

    def compile_(model: nn.Module, **options: Any) -> Any:
        return lambda x: (seen.append(len(x)), model(x))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    forward = compiled(nn.Linear(3, 1), torch.zeros(4, 3), "fp32")
    assert forward is not None
    for size in (4, 3, 8, 4):
        forward(torch.zeros(size, 3))
    assert seen == [4, 4, 4]  # the first is the trial


def test_a_model_that_cannot_be_compiled(make: Any, monkeypatch: Any, caplog: Any) -> None:
    """One warning says why, the configuration says that it was not compiled, and the numbers are those of a plain run."""

    def compile_(model: nn.Module, **options: Any) -> Any:
        def fail(inputs: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("\nno such backend\nand a long story")

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    with caplog.at_level(logging.WARNING):
        trainer = make("run")
    message = "trainer.compile: this model could not be compiled and is trained without (no such backend)"
    assert [record.getMessage() for record in caplog.records] == [message]
    assert resolved(trainer)["trainer"]["compile"] is False
    trainer.fit()
    plain = make("plain", "trainer.compile=false")
    plain.fit()
    assert all(map(torch.equal, trainer.run.model.parameters(), plain.run.model.parameters()))


def test_without_a_compiler(tmp_path: Path) -> None:
    """On a machine without a C++ compiler the run warns in one line and trains."""
    words = ["model=linear", "data=blobs", "trainer.fast_dev_run=true", "trainer.compile=true", "callbacks=none"]
    env = {**os.environ, "CXX": "/nowhere/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "dlrun", *words, "hydra.run.dir=run", "device=cpu"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0
    warnings = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(warnings) == 1, done.stderr
    assert warnings[0].startswith("dlrun: warning: trainer.compile: this model could not be compiled")


@needs_compiler
@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 2, "padding": 1, "ceil_mode": True}])
def test_max_pooling_in_a_compiled_model(options: Any) -> None:
    """Layers left to PyTorch's kernel give outputs and gradients of the uncompiled model, bit for bit."""
    layer = nn.MaxPool2d(3, **options)
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(0)).relu().requires_grad_()
    wanted = layer(x)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((wanted * weights).sum(), x)
    model = nn.Sequential(layer)
    keep_max_pooling(model)
    outputs = torch.compile(model, dynamic=False, fullgraph=True)(x)
    assert torch.equal(outputs, wanted)
    assert torch.equal(torch.autograd.grad((outputs * weights).sum(), x)[0], gradient)
    assert torch.equal(model(x), wanted)
