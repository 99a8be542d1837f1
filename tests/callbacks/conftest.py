"""A small run for callbacks to look at: random 8x8 images of three classes, a convolutional network, a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dlrun import streams
from dlrun.callbacks._base import Callback, Run
from dlrun.losses import LOSSES
from dlrun.spec import Batch, DataSpec, TargetSpec
from dlrun.streams import Stream
from dlrun.tasks import TASKS

CLASSES = ("cat", "dog", "ship")


class FakeData:
    """96 training and 40 validation samples of 8x8 images; the class moves the mean of the pixels."""

    def __init__(self, batch_size: int = 32) -> None:
        self.batch_size = batch_size
        self.samples = {"train": self._draw(96, "train"), "val": self._draw(40, "val"), "test": self._draw(40, "test")}

    def _draw(self, count: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        generator = streams.generator(3, name)
        targets = torch.randint(3, (count,), generator=generator)
        return torch.randn(count, 1, 8, 8, generator=generator) + targets.view(-1, 1, 1, 1) - 1, targets

    def epoch(self, epoch: int, start: int = 0, timed: bool = True) -> Iterator[Batch]:
        inputs, targets = self.samples["train"]
        order = torch.randperm(len(targets), generator=streams.generator(3, "order", epoch))
        for rows in order.split(self.batch_size)[start:]:
            yield Batch(inputs[rows], targets[rows], rows)

    def split(self, name: str, batch_size: int | None = None) -> Iterator[Batch]:
        inputs, targets = self.samples[name]
        for rows in torch.arange(len(targets)).split(batch_size or 16):
            yield Batch(inputs[rows], targets[rows], rows)


def small_network() -> nn.Sequential:
    """Convolution, batch norm, dropout of PyTorch (which draws from the global generator), and a frozen layer."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(144, 16),
        nn.BatchNorm1d(16),
        nn.Tanh(),
        nn.Linear(16, 3),
    )
    model[6].eval()  # a frozen layer: whoever calls model.train() afterwards breaks it
    return model


def make_run(folder: Path, model: nn.Module | None = None, epochs: int = 2, **changes: Any) -> Run:
    """The run before its first step. `target`: another `TargetSpec`; `task`, `loss`: other names."""
    target = changes.pop("target", TargetSpec("class", 3, CLASSES))
    spec = DataSpec((1, 8, 8), target, 96, 40, 40, (0.5,), (0.25,))
    task = TASKS.build({"name": changes.pop("task", "supervised")}, data=spec)
    task.loss = LOSSES.build({"name": changes.pop("loss", "ce")}, target=task.target())
    torch.manual_seed(0)
    model = model or small_network()
    config = {
        "seed": 0,
        "model": {"name": "small", "hidden": [16], "tied": True},
        "optimizer": {"name": "sgd", "lr": 0.1},
        "callbacks": {"tensorboard": {"name": "tensorboard"}},
    }
    return Run(
        folder=folder,
        config=config,
        spec=spec,
        data=FakeData(),
        model=model,
        task=task,
        loss=task.loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        device=torch.device("cpu"),
        epochs=epochs,
        total_steps=epochs * 3,
        steps_per_epoch=3,
        monitor="val/loss",
        **changes,
    )


def evaluate(run: Run, split: str, callbacks: Sequence[Callback] = ()) -> dict[str, float]:
    """Loss and accuracy in evaluation mode; callbacks see every batch."""
    modes = {m: m.training for m in run.model.modules()}
    run.model.eval()
    results = []
    with torch.inference_mode():
        for batch in run.data.split(split):
            results.append(run.task(run.model, batch, Stream(0, "task")))
            for callback in callbacks:
                callback.on_evaluation_batch(run, split, batch, results[-1])
    for module, mode in modes.items():
        module.training = mode
    loss = sum(r.loss.item() * len(r.targets) for r in results) / sum(len(r.targets) for r in results)
    right = [
        (run.loss.predict(r.outputs).flatten() == r.targets.flatten()).float() for r in results if r.targets.ndim == 1
    ]
    return {"loss": loss, **({"accuracy": torch.cat(right).mean().item()} if right else {})}


def train(run: Run, callbacks: list[Callback], until: int | None = None, save_at: int = 0) -> list[Mapping[str, Any]]:
    """The loop of callbacks/_base.py up to step `until` (then it is as if killed). Returns what the callbacks' states were
    when step `save_at` had been done."""

    def call(hook: str, *args: Any) -> None:
        for callback in callbacks:
            getattr(callback, hook)(run, *args)

    saved: list[Mapping[str, Any]] = []
    call("on_fit_start")
    while run.epoch < run.epochs:
        call("on_epoch_start")
        for batch in run.data.epoch(run.epoch, run.step % 3):
            run.optimizer.zero_grad()
            result = run.task(run.model, batch, Stream(0, "task"))
            result.loss.backward()
            run.optimizer.step()
            run.step, run.samples = run.step + 1, run.samples + len(batch.indices)
            call("on_step", result)
            loss = result.loss.item()
            scalars = {"train/loss": loss, "train/objective": loss, "train/penalty": 0.0, "lr": 0.1}
            call("on_log", {**scalars, "gradient_norm": 1.0, "samples_per_s": 1000.0})
            if run.step == save_at and run.step % 3:
                saved = [callback.state_dict() for callback in callbacks]
            if run.step == until:
                return saved
        run.epoch += 1
        run.history["train"], run.history["val"] = evaluate(run, "train"), evaluate(run, "val", callbacks)
        for split in ("train", "val"):
            call("on_evaluation", split, run.history[split])
        run.best = {"epoch": run.epoch, "step": run.step, "monitor": "val/loss", "value": run.history["val"]["loss"]}
        if run.step == save_at:
            saved = [callback.state_dict() for callback in callbacks]
        call("on_epoch_end")
    call("on_fit_end")
    run.history["test"] = evaluate(run, "test", callbacks)
    call("on_evaluation", "test", run.history["test"])
    call("on_run_end", {"status": "finished", "metrics": run.history, "best": {**run.best, "checkpoint": "best.pt"}})
    return saved


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_run` in a folder of the test's own."""
    return lambda *args, **changes: make_run(tmp_path / "run", *args, **changes)


@pytest.fixture
def fit() -> Callable[..., list[Mapping[str, Any]]]:
    """`train`."""
    return train


@pytest.fixture
def resumed() -> Callable[..., Run]:
    """A run as a resumed process finds it at `step`: trained again up to there without callbacks."""

    def make(run: Run, step: int) -> Run:
        again = make_run(run.folder, epochs=run.epochs)
        train(again, [], until=step)
        if step % 3 == 0:  # the checkpoint of an epoch's end
            again.epoch = step // 3
        return again

    return make
