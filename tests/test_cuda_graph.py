"""Recorded updates: replayed, they give the very numbers of updates launched kernel by kernel.

On the CPU a tape stands in for the CUDA graph. It keeps every operation with the addresses of its tensors and the values of its
numbers, as a graph does, so that a number that should change from step to step but was recorded shows as a wrong result.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dlrun import checkpoint, rundir
from dlrun.build import build_trainer, check
from dlrun.callbacks._base import Callback
from dlrun.data._augmentation import AUGMENTATIONS
from dlrun.divergence import Diverged
from dlrun.metrics._sums import EpochSums
from dlrun.registry import ConfigError
from dlrun.tasks.supervised import Supervised
from dlrun.trainer import Trainer
from dlrun.trainer._graph import WARM_UP, graphed

aten = torch.ops.aten
WAITING = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default}
FROM_THE_CPU = {aten.lift_fresh.default}  # torch.tensor(number): on CUDA a copy that waits
BASE = ("device=cpu", "data=digits", "data.batch_size=128", "callbacks=none", "trainer.epochs=2")
MLP = ("model=mlp", "model.hidden=[16]")
LENET = ("model=lenet", "data.batch_size=256", "data.limit_train=1200")


class Tape(TorchDispatchMode):
    """Records operations without their work being done; those that would make the CPU wait for a device fail, as they do
    while a CUDA graph is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, ...]] = []
        self.before: list[tuple[Tensor, Tensor]] = []  # what was written to, and its content before

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in WAITING | FROM_THE_CPU:
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        for argument, value in zip(function._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name in ("running_mean", "running_var"):  # which its schema does not tell
                self.before += [(tensor, tensor.clone()) for tensor in tree_leaves(value)]
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    @torch.no_grad()
    def undo(self) -> None:
        for tensor, content in reversed(self.before):
            tensor.copy_(content)

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, out in self.operations:
            for place, value in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)


class TapeRecorder:
    """What `CudaRecorder` is on CUDA."""

    def __init__(self) -> None:
        self.launched, self.recorded, self.replayed = 0, 0, 0

    def launch(self, function: Callable[[], Any]) -> Any:
        self.launched += 1
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        with Tape() as tape:
            result = function()
        tape.undo()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return result, replay


class Seen(Callback):
    """Keeps what a callback can see: results, gradients and learning rates of every step, and what is logged."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, ...]] = []
        self.logged: list[dict[str, float]] = []

    def on_step(self, run, result) -> None:
        gradients = [None if p.grad is None else p.grad.clone() for p in run.model.parameters()]
        self.steps.append((result, [g["lr"] for g in run.optimizer.param_groups], gradients))

    def on_log(self, run, scalars) -> None:
        self.logged.append({name: value for name, value in scalars.items() if name != "samples_per_s"})


@pytest.fixture
def make(composed, tmp_path: Path):
    """A trainer for the given overrides, in a folder of its own; `graph`: with recorded updates."""

    def build(*overrides: str, folder: str = "run", graph: bool = True) -> Trainer:
        config = composed(*BASE, *overrides)
        check(config)
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        trainer = build_trainer(config, path)
        trainer.callbacks = [Seen()]
        trainer.log_every_steps = 3
        if graph:
            trainer.reads_losses = False  # as on CUDA
            trainer.graph = graphed(trainer, TapeRecorder())
        return trainer

    return build


def equal(a: Any, b: Any) -> bool:
    """Whether two nests of containers, tensors and plain values hold the same, bit for bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def kept(trainer: Trainer) -> dict[str, Any]:
    """Its last checkpoint, but for times."""
    state = checkpoint.load(trainer.run.folder / rundir.LAST)
    return {key: value for key, value in state.items() if key not in ("epoch_seconds", "fit_seconds")}


def train_until(trainer: Trainer, steps: int) -> None:
    """Stops after `steps` updates, as a kill would, with last.pt written there."""
    trainer.checkpoint_every_steps = steps
    original = trainer.save_last

    def save() -> None:
        original()
        if trainer.run.step == steps:
            trainer.background.wait()
            raise KeyboardInterrupt

    trainer.save_last = save  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


VARIANTS = {
    "dropout, adam, cosine": (*MLP, "model.dropout=0.3"),
    "batch norm, momentum": (*LENET, "model.batch_norm=true", "optimizer=momentum"),
    "penalties, max norm": (
        *MLP,
        "regularization=[l1,l2,max_norm]",
        "regularization.max_norm.limit=0.5",
        "optimizer=adamw",
    ),
    "clipping": (*MLP, "trainer.clip_norm=0.1", "optimizer=sgd"),
    "moving average, one cycle": (*MLP, "trainer.ema_decay=0.9", "optimizer=nesterov", "scheduler=one_cycle"),
    "mean of weights, batch norm": (*MLP, "model.batch_norm=true", "trainer.swa_start=0.5"),
    "sparse code": ("model=autoencoder", "task=reconstruction", "regularization=[code_sparsity]"),
    "bf16, augmentation": (*MLP, "trainer.precision=bf16", "data.augmentation={shift: {pixels: 1}, noise: {}}"),
    "channels last": (*LENET, "trainer.memory_format=channels_last", "model.dropout=0.5"),
    "label smoothing, plateau": (*MLP, "loss=ce", "loss.label_smoothing=0.1", "scheduler=halve_on_plateau"),
    "regression": ("data=poly1d", "data.batch_size=16", "model=mlp", "model.hidden=[8]", "loss=gaussian_nll"),
    "smaller than a minibatch": (*MLP, "data.limit_train=100", "trainer.epochs=8"),
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_replayed_updates_are_the_updates(make, options: tuple[str, ...]) -> None:
    """Checkpoint, metrics and all that callbacks see are those of the loop without recording, to the last bit."""
    plain, recorded = make(*options, folder="plain", graph=False), make(*options, folder="recorded")
    plain.fit()
    recorded.fit()
    recorder = recorded.graph.recorder
    full = recorded.run.spec.num_train // recorded.graph.size * recorded.run.epochs
    assert (recorder.recorded, recorder.replayed) == (1, full - WARM_UP)
    assert recorder.launched + recorder.replayed == recorded.run.total_steps
    assert equal(kept(plain), kept(recorded))
    assert plain.run.history == recorded.run.history
    (first,), (second,) = plain.callbacks, recorded.callbacks
    assert equal(first.logged, second.logged)
    assert len(first.steps) == plain.run.total_steps
    assert [step for step, pair in enumerate(zip(first.steps, second.steps, strict=True)) if not equal(*pair)] == []


def test_last_minibatches_are_not_full(make) -> None:
    """The comparison covers minibatches of another size, which are not replayed."""
    trainer = make(*MLP)
    assert trainer.run.spec.num_train % trainer.graph.size


@pytest.mark.parametrize("steps", [2, 7, 15])
@pytest.mark.parametrize(
    "options", [(*MLP, "model.dropout=0.3"), (*MLP, "optimizer=momentum", "trainer.ema_decay=0.9")]
)
def test_resume_is_exact(make, options: tuple[str, ...], steps: int) -> None:
    """Stopped while warming up, in mid-epoch or in the second epoch, and resumed in a new process, it ends the same."""
    whole = make(*options, folder="whole", graph=False)
    whole.fit()
    stopped = make(*options, folder="stopped")
    train_until(stopped, steps)
    resumed = make(*options, folder="stopped")
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    resumed.fit()
    assert resumed.graph.recorder.replayed > 0
    assert equal(kept(whole), kept(resumed))


def test_a_loaded_state_is_recorded_anew(make) -> None:
    """Loading replaces the tensors of the optimizer: an old recording would go on updating those before."""
    options = (*MLP, "model.dropout=0.3")
    whole, trainer = make(*options, folder="whole", graph=False), make(*options)
    whole.fit()
    train_until(trainer, 7)
    state = checkpoint.load(trainer.run.folder / rundir.LAST)
    assert trainer.graph.recording is not None
    trainer.load_state_dict(state)
    assert trainer.graph.recording is None
    del trainer.save_last
    trainer.checkpoint_every_steps = None
    trainer.fit()
    assert trainer.graph.recorder.recorded == 2
    assert equal(kept(whole), kept(trainer))


@pytest.mark.parametrize("bad_step", [0, 2, 6, 15])
def test_divergence_is_found(make, bad_step: int) -> None:
    """Samples that are not finite are found at their step, in the words of the loop that reads every loss."""
    said = []
    for graph in (False, True):
        trainer = make(*MLP, folder=str(graph), graph=graph)
        original = trainer.run.data.epoch

        def epoch(number: int, start: int = 0, of: Any = original, steps: int = trainer.run.steps_per_epoch):
            for batch in of(number, start):
                bad = number * steps + start == bad_step
                yield batch._replace(inputs=batch.inputs * float("nan")) if bad else batch
                start += 1

        trainer.run.data.epoch = epoch
        with pytest.raises(Diverged) as caught:
            trainer.fit()
        said.append((str(caught.value), caught.value.details))
    assert said[0] == said[1]
    assert said[0][1]["step"] == bad_step + 1


@pytest.mark.parametrize("scale", [30.0, 300.0])
def test_divergence_by_the_learning_rate_is_found(make, scale: float) -> None:
    """A learning rate far too large ends at the same step, replayed or not."""
    options = (
        *(*MLP, "optimizer=sgd", f"optimizer.lr={scale}", "scheduler=constant", "trainer.epochs=8"),
        *("regularization=[l2]", "regularization.l2.strength=0.1"),
    )
    said = []
    for graph in (False, True):
        trainer = make(*options, folder=str(graph), graph=graph)
        with pytest.raises(Diverged) as caught:
            trainer.fit()
        said.append((str(caught.value), caught.value.details))
    assert said[0] == said[1]
    assert said[0][1]["step"] > WARM_UP + 1, "diverged before anything was replayed"


def test_results_are_not_overwritten(make) -> None:
    """What a step hands out stays as it was when later steps are replayed into the same memory."""
    trainer = make(*MLP, "regularization=[l2]")
    handed, copies = [], []
    for batch in islice(trainer.run.data.epoch(0), 8):
        result, objective = trainer._step(batch)
        trainer.run.step += 1
        handed.append((result, objective))
        copies.append((result._replace(parts=dict(result.parts)), objective))
        copies[-1] = torch.utils._pytree.tree_map(lambda t: t.clone(), copies[-1])
    assert trainer.graph.recorder.replayed == 5
    assert equal(handed, copies)
    assert len({float(objective) for _, objective in handed}) == 8


def test_learning_rates_are_numbers_outside_the_update(make) -> None:
    """Callbacks, logs and checkpoints see floats; two groups of one rate share their tensor, so that they stay one kernel."""
    trainer = make(*MLP, "regularization=[]", "optimizer.weight_decay=0.1", "optimizer=adamw")
    trainer.fit()
    assert all(type(rate) is float for _, rates, _ in trainer.callbacks[0].steps for rate in rates)
    assert all(type(group["lr"]) is float for group in kept(trainer)["optimizer"]["param_groups"])
    assert len(trainer.graph.rates) == 2
    assert trainer.graph.rates[0] is trainer.graph.rates[1]


OBSTACLES = {
    "accumulate": ("trainer.accumulate=2", "trainer.accumulate is not 1"),
    "auto": ("trainer.accumulate=auto", "trainer.accumulate is not 1"),
    "fp16": ("trainer.precision=fp16", "trainer.precision=fp16"),
    "rmsprop": ("optimizer=rmsprop", "not fused"),
    "foreach": ("optimizer.implementation=foreach", "not fused"),
}


@pytest.mark.parametrize(("option", "reason"), OBSTACLES.values(), ids=OBSTACLES.keys())
def test_what_cannot_be_recorded_is_trained_without(make, caplog, option: str, reason: str) -> None:
    """One warning with the reason before training, and the numbers of the plain loop."""
    plain = make(*MLP, option, folder="plain", graph=False)
    plain.fit()
    with caplog.at_level(logging.WARNING):
        trainer = make(*MLP, option)
        trainer.fit()
    assert trainer.graph is None
    assert [reason in r.message for r in caplog.records if "cuda_graph" in r.message] == [True]
    assert equal(kept(plain), kept(trainer))


def test_foreign_randomness_is_trained_without(make, caplog) -> None:
    """A module that draws from PyTorch's global generators would draw the same for ever."""
    trainer = make(*MLP, graph=False)
    trainer.reseed = True
    with caplog.at_level(logging.WARNING):
        assert graphed(trainer, TapeRecorder()) is None
    assert "global generators" in caplog.text


class Draws(Supervised):
    """A task that draws from the stream of its step."""

    def __call__(self, model, batch, stream):
        first, _ = stream.key()
        return super().__call__(model, batch._replace(inputs=batch.inputs + first * 1e-12), stream)


class Reads(Supervised):
    """A task that reads its loss."""

    def __call__(self, model, batch, stream):
        result = super().__call__(model, batch, stream)
        result.parts["read"] = result.loss.item()
        return result


@pytest.mark.parametrize("task", [Draws, Reads])
def test_a_recording_that_fails_is_done_without(make, caplog, task: type) -> None:
    """One warning at the step where it was tried; that step is not lost, and all numbers are those of the plain loop."""
    options = (*MLP, "model.dropout=0.3", "trainer.clip_norm=0.5")
    plain = make(*options, folder="plain", graph=False)
    plain.run.task.__class__ = task
    plain.fit()
    with caplog.at_level(logging.WARNING):
        trainer = make(*options)
        trainer.run.task.__class__ = task
        trainer.fit()
    assert trainer.graph.failed
    assert trainer.graph.recorder.replayed == 0
    assert sum("cannot be recorded" in record.message for record in caplog.records) == 1
    assert equal(kept(plain), kept(trainer))
    assert equal(plain.callbacks[0].steps, trainer.callbacks[0].steps)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "momentum", "nesterov"])
def test_no_operation_of_a_step_waits(make, optimizer: str) -> None:
    """From the batch to the average no operation reads a value from the device or makes a tensor of numbers that lie outside:
    on the CPU, where such operations can be seen and cost nothing."""
    augmentation = ", ".join(f"{name}: {{}}" for name in AUGMENTATIONS.names() if name != "colour")
    trainer = make(
        *(*LENET, "model.dropout=0.3", "model.batch_norm=true", f"optimizer={optimizer}", "scheduler=one_cycle"),
        *("trainer.clip_norm=1.0", "trainer.ema_decay=0.9", "regularization=[l1,l2,max_norm]"),
        f"data.augmentation={{{augmentation}}}",
    )
    trainer.graph = None
    batches = trainer.run.data.epoch(0)
    for number, batch in enumerate(batches):
        if number == 1:  # the first update sets up
            break
        trainer._step(batch)
        trainer.run.step += 1
    with Tape() as tape:
        for batch in batches:
            result, _ = trainer._step(batch)
            trainer.run.step += 1
            trainer.train_metrics.update(result.outputs, result.targets)
    assert trainer.run.step == trainer.run.steps_per_epoch - 1
    assert len(tape.operations) > 300


def test_refused_without_cuda(make, cli) -> None:
    """On the CPU the setting is an error of one line."""
    with pytest.raises(ConfigError, match=r"trainer\.cuda_graph: needs a CUDA device, and this run is on the cpu"):
        make(*MLP, "trainer.cuda_graph=true")
    done = cli("model=mlp", "data=digits", "device=cpu", "trainer.cuda_graph=true")
    assert done.rc == 1
    assert done.stderr.count("\n") == 1


@pytest.mark.cuda
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_cuda_replays_the_updates(make, options: tuple[str, ...]) -> None:
    """As on the CPU, with CUDA graphs: the checkpoint of a run that records is that of one that never does."""
    ends = []
    for never in (True, False):
        more = ("device=cuda", "trainer.cuda_graph=true", "trainer.deterministic=true")
        trainer = make(*options, *more, folder=str(never), graph=False)
        trainer.graph.failed = never
        trainer.fit()
        assert never or trainer.graph.recording is not None
        ends.append((kept(trainer), trainer.callbacks[0].steps))
    assert equal(*ends)


@pytest.mark.cuda
def test_cuda_resume_is_exact(make) -> None:
    """A recorded run that is stopped and resumed ends as one that was not."""
    options = (*LENET, "model.dropout=0.3", "device=cuda", "trainer.cuda_graph=true", "trainer.deterministic=true")
    whole = make(*options, folder="whole", graph=False)
    whole.fit()
    stopped = make(*options, folder="stopped", graph=False)
    train_until(stopped, 7)
    resumed = make(*options, folder="stopped", graph=False)
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    resumed.fit()
    assert equal(kept(whole), kept(resumed))


@pytest.mark.cuda
@pytest.mark.parametrize("graph", [False, True])
def test_no_step_waits_for_cuda(make, graph: bool) -> None:
    """An epoch's steps, the first of the epoch included, neither read from the device nor copy to it from ordinary memory."""
    trainer = make(
        *(*LENET, "model.dropout=0.3", "model.batch_norm=true", "device=cuda", f"trainer.cuda_graph={graph}"),
        *("trainer.clip_norm=1.0", "trainer.ema_decay=0.9", "regularization=[l1,max_norm]", "data.batch_size=64"),
        "data.augmentation={shift: {pixels: 1}, rotation: {}, noise: {}}",
        graph=False,
    )
    run, sums = trainer.run, EpochSums()
    for number in range(2):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            for batch in run.data.epoch(number):
                result, objective = trainer._step(batch)
                run.step += 1
                sums.add(result.loss, objective, len(batch.indices))
                trainer.train_metrics.update(result.outputs, result.targets)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not graph or trainer.graph.recording is not None
