"""Divergence: stopped before the update, named by step, layer and samples, with the last finite checkpoint kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun import checkpoint, rundir
from dlrun.actions.train import fit_and_test
from dlrun.build import build_trainer, check
from dlrun.callbacks._base import Callback
from dlrun.divergence import Diverged
from dlrun.optimizers._state import settings_of
from dlrun.trainer import Trainer

SHORT = (
    "device=cpu", "data=digits", "model=mlp", "model.hidden=[16,16]", "model.dropout=0.0", "callbacks=none", "trainer.epochs=3",
    "data.limit_train=60", "data.limit_val=20", "data.limit_test=20", "data.batch_size=20", "trainer.checkpoint_every_steps=2",
)  # fmt: skip
BAD = 4  # updates that are done when it happens: in mid-epoch, with the checkpoint of the step before
ROW = 13  # of the 20 of a minibatch; of three micro-batches it is in the second
INF, NAN = float("inf"), float("nan")


@pytest.fixture
def make(composed, tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer for the given overrides, in a folder of its own."""

    def build(*overrides: str, folder: str = "run") -> Trainer:
        config = composed(*SHORT, *overrides)
        check(config)
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        return build_trainer(config, path)

    return build


def is_bad(trainer: Trainer) -> bool:
    return trainer.run.step == BAD and trainer.run.model.training


def layers(trainer: Trainer) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in trainer.run.model.named_modules() if isinstance(m, torch.nn.Linear)}


def spoil_input(trainer: Trainer) -> str:
    """One sample is infinite."""
    original = trainer.run.data.epoch

    def epoch(number: int, start: int = 0) -> Iterator[Any]:
        for i, batch in enumerate(original(number, start), start):
            if number * trainer.run.steps_per_epoch + i == BAD:
                batch.inputs[ROW] = INF
            yield batch

    trainer.run.data.epoch = epoch  # type: ignore[method-assign]
    return ""


def spoil_layer(trainer: Trainer) -> str:
    """One row of a layer's output is not a number."""
    name, layer = list(layers(trainer).items())[1]

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output.index_fill(0, torch.tensor(ROW), NAN) if is_bad(trainer) else output

    layer.register_forward_hook(hook)
    return name


def spoil_loss(trainer: Trainer) -> str:
    """The loss of one sample is infinite although its outputs are not."""
    loss = trainer.run.loss

    class Spoiled(type(loss)):  # type: ignore[misc]
        def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
            values = super().per_sample(outputs, targets)
            return values.index_fill(0, torch.tensor(ROW), INF) if is_bad(trainer) else values

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return self.per_sample(outputs, targets).mean()

    loss.__class__ = Spoiled
    return ""


def spoil_gradient(trainer: Trainer) -> str:
    """The root of zero for one sample: 0 forward, infinity backward."""
    layer = list(layers(trainer).values())[1]

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        if not is_bad(trainer):
            return output
        root = torch.sqrt(output[ROW : ROW + 1] * 0)
        return output + F.pad(root, (0, 0, ROW, len(output) - ROW - 1))

    layer.register_forward_hook(hook)
    return "*"


def spoil_weight(trainer: Trainer) -> str:
    """The gradient of a single weight overflows."""
    name, layer = list(layers(trainer).items())[-1]
    layer.weight.register_hook(  # type: ignore[union-attr]
        lambda g: g.index_fill(0, torch.tensor(0), INF) if is_bad(trainer) else g
    )
    return name


def spoil_penalty(trainer: Trainer) -> str:
    """A penalty is infinite."""
    regularizer = dict(trainer.penalties)["l2"]
    original = regularizer.penalty
    regularizer.penalty = lambda *a: original(*a) * (INF if is_bad(trainer) else 1.0)  # type: ignore
    return ""


class Case(NamedTuple):
    """How a step goes wrong, and what is said of it; `sample`: whether the one sample can be told."""

    spoil: Callable[[Trainer], str]
    said: str
    sample: bool
    options: tuple[str, ...] = ()


CASES = {
    "input": Case(spoil_input, "the input of the model is", True),
    "layer": Case(spoil_layer, "the output of layer '{}' is", True),
    "loss": Case(spoil_loss, "the loss itself is", True),
    "gradient": Case(spoil_gradient, "the gradient of the output of layer", True),
    "weight": Case(spoil_weight, "the gradient of the weights '{}.weight' is", False),
    "penalty": Case(spoil_penalty, "'penalty/l2' is", False, ("regularization=[l2]",)),
    "accumulated": Case(spoil_input, "the input of the model is", True, ("trainer.accumulate=3",)),
    "dropout": Case(spoil_layer, "the output of layer '{}' is", True, ("model.dropout=0.5",)),
    "batch norm": Case(spoil_layer, "the output of layer '{}' is", True, ("model.batch_norm=true",)),
    "clipped": Case(spoil_weight, "the gradient of the weights '{}.weight' is", False, ("trainer.clip_norm=1.0",)),
    "averaged": Case(spoil_gradient, "the gradient of the output of layer", True, ("trainer.ema_decay=0.9",)),
    "bf16": Case(spoil_layer, "the output of layer '{}' is", True, ("trainer.precision=bf16",)),
    "max norm": Case(spoil_weight, "the gradient of the weights", False, ("regularization=[max_norm]",)),
}


@pytest.mark.parametrize("reads_losses", [True, False], ids=["each step", "every few steps"])
@pytest.mark.parametrize("name", CASES)
def test_what_goes_wrong_is_named(make, name: str, reads_losses: bool) -> None:
    """The step, the first layer and the samples are told; no weight has moved; the last checkpoint is finite; the same
    where losses are read every few steps only, as on CUDA."""
    spoil, said, sample, options = CASES[name]
    trainer = make(*options)
    trainer.reads_losses = reads_losses
    order = next(b.indices for i, b in enumerate(trainer.run.data.epoch(1)) if i == BAD - trainer.run.steps_per_epoch)
    steps = remember(trainer)
    module = spoil(trainer)
    with pytest.raises(Diverged) as caught:
        fit_and_test(trainer)
    message, details = str(caught.value), caught.value.details
    assert message.startswith(said.format(module)), message
    assert f"not finite at step {BAD + 1}" in message
    assert "\n" not in message
    assert (details["step"], details["split"], details["samples"]) == (BAD + 1, "train", order.tolist())
    assert details["not_finite"] == ([int(order[ROW])] if sample else [])
    assert (f"samples {int(order[ROW])} of" in message) is sample
    assert details["module"] == (module or None) if module != "*" else details["module"]
    weights = dict(trainer.run.model.named_parameters())
    assert all(torch.equal(weights[n], value) for n, value in steps[BAD].items())
    state = checkpoint.load(trainer.run.folder / rundir.LAST)
    assert state["counters"]["step"] == BAD
    assert all(torch.isfinite(value).all() for value in state["model"].values())
    results = json.loads((trainer.run.folder / "results.json").read_text())
    assert (results["status"], results["test"], results["divergence"]) == ("diverged", "not read", details)


def test_a_replay_over_several_epochs(make, caplog: pytest.LogCaptureFixture) -> None:
    """Where checkpoints are epochs apart it starts from the one there is, and tells the same; epochs are logged once."""
    options = ("trainer.checkpoint_every_epochs=5", "trainer.checkpoint_every_steps=null", "model.dropout=0.5")
    said = []
    caplog.set_level("INFO", "dlrun")
    for reads_losses in (True, False):
        trainer = make(*options, folder=str(reads_losses))
        trainer.reads_losses = reads_losses
        spoil_input(trainer)
        caplog.clear()
        with pytest.raises(Diverged, match=f"not finite at step {BAD + 1}") as caught:
            trainer.fit()
        said.append((str(caught.value), caught.value.details))
        assert sum("epoch 1 step 3 val" in record.getMessage() for record in caplog.records) == 1
    assert said[0] == said[1]
    assert checkpoint.load(trainer.run.folder / rundir.LAST)["counters"]["step"] == 1


def remember(trainer: Trainer) -> dict[int, dict[str, Tensor]]:
    """The weights after every update, by its number; updates that are undone by a replay are written over."""
    found: dict[int, dict[str, Tensor]] = {}
    original = trainer._step

    def step(batch: Any) -> Any:
        done = original(batch)
        found[trainer.run.step + 1] = {n: p.detach().clone() for n, p in trainer.run.model.named_parameters()}
        return done

    trainer._step = step  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("reads_losses", [True, False])
def test_after_a_resume_it_is_told_alike(make, reads_losses: bool) -> None:
    """A run stopped before the bad step and resumed gives the very message of one never stopped."""
    whole = make(folder="whole")
    spoil_layer(whole)
    with pytest.raises(Diverged) as expected:
        whole.fit()
    stopped = make("trainer.steps=9", folder="stopped")

    def stop(run: Any, result: Any) -> None:
        if run.step == 3:
            raise KeyboardInterrupt

    stopped.callbacks = [observer(on_step=stop)]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = make(folder="stopped")
    resumed.reads_losses = reads_losses
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    assert resumed.run.step == 2
    spoil_layer(resumed)
    with pytest.raises(Diverged) as caught:
        resumed.fit()
    assert str(caught.value) == str(expected.value)
    assert caught.value.details == expected.value.details


def observer(**hooks: Callable[..., None]) -> Callback:
    """A callback with these hooks."""
    callback = Callback()
    for name, hook in hooks.items():
        setattr(callback, name, hook)
    return callback


@pytest.mark.parametrize("reads_losses", [True, False])
def test_in_validation_only(make, reads_losses: bool) -> None:
    """The validation sample is told; the checkpoint from before the validation stays."""
    trainer = make()
    trainer.reads_losses = reads_losses
    name, layer = list(layers(trainer).items())[-1]

    def hook(module: Any, inputs: Any, output: Tensor) -> Tensor:
        return output if module.training else output.index_fill(0, torch.tensor(5), NAN)

    layer.register_forward_hook(hook)
    with pytest.raises(
        Diverged,
        match=rf"layer '{name}' is not finite in the validation after step 3 \(samples 5 of the val split, rows \d+",
    ):
        fit_and_test(trainer)
    results = json.loads((trainer.run.folder / "results.json").read_text())
    assert (results["status"], results["metrics"]["val"]["loss"]) == ("diverged", None)
    divergence = results["divergence"]
    assert (divergence["split"], divergence["module"], divergence["not_finite"]) == ("val", name, [5])
    assert checkpoint.load(trainer.run.folder / rundir.LAST)["counters"]["step"] == 2


def test_an_update_that_fp16_leaves_out_is_no_divergence(make) -> None:
    """A gradient that overflows half precision lowers the loss scale and skips the update; the run goes on."""
    trainer = make("trainer.precision=fp16", "optimizer=sgd")
    steps = remember(trainer)
    spoil_weight(trainer)
    scale = trainer.scaler.get_scale()  # type: ignore[union-attr]
    fit_and_test(trainer)
    assert all(torch.equal(steps[BAD][n], steps[BAD + 1][n]) for n in steps[BAD])
    assert not all(torch.equal(steps[BAD - 1][n], steps[BAD][n]) for n in steps[BAD])
    assert trainer.scaler.get_scale() == scale / 2  # type: ignore[union-attr]
    assert trainer.run.step == 9


def test_a_loss_that_is_not_finite_stops_fp16_too(make) -> None:
    """Only gradients may overflow; a loss that is not finite is no matter of the scale."""
    trainer = make("trainer.precision=fp16")
    spoil_layer(trainer)
    with pytest.raises(Diverged, match=rf"not finite at step {BAD + 1}"):
        trainer.fit()


@pytest.mark.parametrize("reads_losses", [True, False])
def test_gradients_that_no_scale_makes_finite_stop_fp16(make, reads_losses: bool) -> None:
    """If every update is left out the run would end untrained: after 27 in a row it is stopped, and the layer named."""
    trainer = make("trainer.precision=fp16", "trainer.epochs=20", "optimizer=sgd")
    trainer.reads_losses = reads_losses
    before = [p.detach().clone() for p in trainer.trainable]
    name, layer = list(layers(trainer).items())[-1]
    layer.weight.register_hook(lambda g: g * NAN)  # type: ignore[union-attr]
    with pytest.raises(Diverged, match=rf"the gradient of the weights '{name}.weight' is not finite at step 27"):
        fit_and_test(trainer)
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.trainable, strict=True))


@pytest.mark.parametrize("reads_losses", [True, False])
def test_optimizers_that_look_at_signs_only(make, reads_losses: bool) -> None:
    """The sign of a gradient is finite when the gradient is not: the gradients themselves are looked at."""
    trainer = make()
    trainer.reads_losses = reads_losses
    trainer.run.optimizer = torch.optim.Rprop(trainer.trainable, lr=1e-3)
    trainer.built_settings = settings_of(trainer.run.optimizer)
    steps, name = remember(trainer), spoil_weight(trainer)
    with pytest.raises(Diverged, match=rf"the gradient of the weights '{name}.weight' is not finite at step {BAD + 1}"):
        trainer.fit()
    weights = dict(trainer.run.model.named_parameters())
    assert all(torch.equal(weights[n], value) for n, value in steps[BAD].items())


def test_a_weight_that_is_not_finite_has_no_samples(make) -> None:
    """Rows of a weight are not taken for samples."""
    trainer = make()
    name, layer = next(iter(layers(trainer).items()))
    with torch.no_grad():
        layer.weight[3] = NAN  # type: ignore[index, operator]
    with pytest.raises(Diverged, match=rf"the weights '{name}.weight' are not finite at step 1") as caught:
        trainer.fit()
    assert caught.value.details["not_finite"] == []
    assert not (trainer.run.folder / rundir.LAST).exists()


def test_samples_are_rows_of_the_training_split(make) -> None:
    """The numbers told are those by which the split, and the source, give the sample back."""
    trainer = make()
    spoil_input(trainer)
    with pytest.raises(Diverged) as caught:
        trainer.fit()
    (bad,) = caught.value.details["not_finite"]
    fresh = make(folder="fresh").run.data
    batch = next(b for i, b in enumerate(fresh.epoch(1)) if i == BAD - 3)
    rows = torch.cat([b.inputs for b in fresh.split("train")])
    assert torch.equal(rows[bad], batch.inputs[ROW])
    (row,) = caught.value.details["source_rows"]
    raw = fresh.source.train()[0].inputs[row : row + 1]
    assert torch.equal(fresh.transform(raw)[0], batch.inputs[ROW])


@pytest.mark.parametrize("every", [1, 1000])
def test_the_command_exits_with_3(cli, every: int) -> None:
    """A learning rate far too high: one line, exit code 3, status diverged, and the checkpoint, if any, is finite."""
    words = ("model=linear", "data=poly1d", "optimizer=sgd", "optimizer.lr=1e30", "device=cpu", "callbacks=none")
    done = cli(*words, "hydra.run.dir=run", f"trainer.checkpoint_every_steps={every}")
    assert done.rc == 3
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dlrun: ")]
    assert "not finite at step" in line
    assert "optimizer.lr" in line
    results = json.loads(Path("run/results.json").read_text())
    assert results["status"] == "diverged"
    assert results["divergence"]["step"] >= 2
    state = checkpoint.load_last(Path("run") / rundir.LAST)
    assert (state is None) is (every == 1000)
    if state is not None:
        assert all(torch.isfinite(value).all() for value in state["model"].values())
        assert all(math.isfinite(value) for value in state["sums"].values() if isinstance(value, float))
