"""The loop: order of a step, accumulation, averaging, best checkpoint, early stopping, resume, divergence."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dlrun import checkpoint, rundir, streams
from dlrun.actions.train import fit_and_test
from dlrun.build import build_trainer, check, resolved
from dlrun.callbacks._base import Callback
from dlrun.callbacks._reporting import Pruned
from dlrun.divergence import Diverged
from dlrun.models import MODELS
from dlrun.models.constant import Constant
from dlrun.optimizers._state import load_state, settings_of
from dlrun.registry import ConfigError
from dlrun.signals import Interrupted
from dlrun.trainer import Trainer
from dlrun.trainer.loop import storages

BASE = ("device=cpu", "data=digits", "data.batch_size=128", "callbacks=none")
SMALL = ("model=mlp", "model.hidden=[16]", "model.dropout=0.0", "trainer.epochs=2")


@pytest.fixture
def make(composed, tmp_path: Path):
    """A trainer for the given overrides, in a folder of its own."""

    def build(*overrides: str, folder: str = "run") -> Trainer:
        model = next((o for o in overrides if o.startswith("model=")), None)
        config = composed(*BASE, *(SMALL if model is None else ()), *overrides)
        check(config)
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        return build_trainer(config, path)

    return build


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.run.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def train_until(trainer: Trainer, steps: int) -> None:
    """Stops after `steps` updates, as a kill would, with last.pt written there."""
    trainer.checkpoint_every_steps = steps
    original = trainer.save_last

    def save() -> None:
        original()
        if trainer.run.step == steps:
            raise KeyboardInterrupt

    trainer.save_last = save  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()


@pytest.mark.curriculum("O16", "T01", "D06")
def test_equals_a_loop_written_by_hand(make) -> None:
    """Two epochs give the very weights of a plain PyTorch loop with the same batches and learning rates."""
    trainer = make("optimizer=momentum", "scheduler=cosine", "optimizer.lr=0.05")
    model = copy.deepcopy(trainer.run.model)
    settings = trainer.run.optimizer.param_groups[0]
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=settings["momentum"], fused=settings["fused"], foreach=settings["foreach"]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, trainer.run.total_steps)
    for epoch in range(2):
        for batch in trainer.run.data.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(batch.inputs), batch.targets).backward()
            optimizer.step()
            schedule.step()
    trainer.fit()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trainer.run.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_same_seed_same_weights(make) -> None:
    """The same configuration and seed give bit-identical weights; another seed does not."""
    options = ("model.dropout=0.3", "data.augmentation={shift: {pixels: 1}}")
    runs = [make(*options, f"seed={seed}", folder=str(i)) for i, seed in enumerate((0, 0, 1))]
    for trainer in runs:
        trainer.fit()
    assert same(weights(runs[0]), weights(runs[1]))
    assert not same(weights(runs[0]), weights(runs[2]))


@pytest.mark.parametrize(
    "options",
    [
        ("optimizer=adam", "model.dropout=0.5", "model.batch_norm=true"),
        ("optimizer=momentum", "trainer.ema_decay=0.9", "regularization=[l1,l2,max_norm]"),
        ("optimizer=rmsprop", "trainer.swa_start=0.3", "scheduler=halve_on_plateau"),
        ("data.augmentation={shift: {pixels: 1}, noise: {}}", "trainer.accumulate=3", "scheduler=one_cycle"),
    ],
    ids=lambda o: o[0],
)
@pytest.mark.parametrize("steps", [5, 13])
def test_resume_in_mid_epoch_is_exact(make, options: tuple[str, ...], steps: int) -> None:
    """A run stopped in mid-epoch and resumed ends with the weights and metrics of one that was never stopped."""
    whole = make(*options, folder="whole")
    whole.fit()
    stopped = make(*options, folder="stopped")
    train_until(stopped, steps)
    resumed = make(*options, folder="stopped")
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    assert resumed.run.step == steps
    resumed.fit()
    assert same(weights(whole), weights(resumed))
    assert whole.run.history["val"] == resumed.run.history["val"]
    assert whole.run.history["train"] == resumed.run.history["train"]
    assert whole.run.best == resumed.run.best


def test_accumulation_is_the_same_update(make) -> None:
    """Three micro-batches give the gradient of the whole minibatch."""
    one, three = make(folder="a"), make("trainer.accumulate=3", folder="b")
    batch = next(iter(one.run.data.epoch(0)))
    _, objective = one._step(batch)
    _, split_objective = three._step(batch)
    torch.testing.assert_close(objective, split_objective)
    for a, b in zip(one.trainable, three.trainable, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.curriculum("R01")
def test_penalty_is_logged_apart(make) -> None:
    """Objective = loss + penalty, and a penalty of strength 0 leaves every bit as it was."""
    plain, zero = make(folder="a"), make("regularization=l2", "regularization.l2.strength=0.0", folder="b")
    strong = make("regularization=l2", "regularization.l2.strength=0.01", folder="c")
    for trainer in (plain, zero, strong):
        trainer.fit()
    assert same(weights(plain), weights(zero))
    train = strong.run.history["train"]
    assert train["penalty"] > 0
    assert train["objective"] == pytest.approx(train["loss"] + train["penalty"], rel=1e-6)


def test_clipping_bounds_the_gradient(make) -> None:
    """After clipping the gradient's norm is at most the limit."""
    trainer = make("trainer.clip_norm=0.01")
    trainer._step(next(iter(trainer.run.data.epoch(0))))
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in trainer.trainable]))
    assert norm <= 0.01 * (1 + 1e-4)


@pytest.mark.curriculum("R11")
def test_best_checkpoint_and_early_stopping(make) -> None:
    """Training stops `patience` epochs after the best, and best.pt holds the weights of the best epoch."""
    trainer = make("trainer.epochs=50", "trainer.patience=2", "optimizer.lr=0.05", "data.limit_train=60")
    trainer.fit()
    best = trainer.run.best
    assert trainer.run.epoch == best["epoch"] + 2 < 50
    state = checkpoint.load(trainer.run.folder / rundir.BEST)
    checkpoint.load_weights(trainer.run.model, state)
    assert trainer.evaluate("val")["loss"] == best["value"]


@pytest.mark.curriculum("D02")
def test_the_test_set_is_sealed(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split is opened once, after training; a monitor on it is refused."""
    trainer = make()
    opened: list[tuple[str, int]] = []
    original = trainer.run.data.split

    def split(name: str, *args: object, **kwargs: object):
        opened.append((name, trainer.run.epoch))
        return original(name, *args, **kwargs)

    monkeypatch.setattr(trainer.run.data, "split", split)
    fit_and_test(trainer)
    assert [epoch for name, epoch in opened if name == "test"] == [2]
    with pytest.raises(ConfigError, match="sealed"):
        make("trainer.monitor=test/loss", folder="b")


def test_results_file(make) -> None:
    """results.json has the contract's keys and strict JSON."""
    trainer = make()
    fit_and_test(trainer)
    results = json.loads((trainer.run.folder / "results.json").read_text())
    assert results["status"] == "finished"
    assert set(results["metrics"]) == {"train", "val", "test"}
    assert set(results["best"]) == {"epoch", "step", "monitor", "value", "checkpoint"}
    assert len(results["timing"]["epoch_s"]) == 2
    assert results["parameters"] == 64 * 16 + 16 + 16 * 10 + 10


def test_divergence_stops_before_the_update(make) -> None:
    """A non-finite loss stops the run before the weights are touched, and names the layer."""
    trainer = make()
    with torch.no_grad():
        list(trainer.run.model.parameters())[-1][0] = float("inf")
    before = weights(trainer)
    with pytest.raises(Diverged, match=r"weights '.*' are not finite at step 1"):
        trainer.fit()
    assert same(before, weights(trainer))


def test_steps_beat_epochs(make) -> None:
    """`trainer.steps` trains exactly so many updates."""
    trainer = make("trainer.steps=13")
    trainer.fit()
    assert trainer.run.step == 13


def test_fast_dev_run_goes_through_everything(make) -> None:
    """One epoch of two batches, validation, test."""
    trainer = make("trainer.fast_dev_run=true", "trainer.epochs=7")
    fit_and_test(trainer)
    assert (trainer.run.step, trainer.run.epoch) == (2, 1)
    assert "accuracy" in trainer.run.history["test"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(make, precision: str) -> None:
    """Mixed precision lowers the loss like full precision does."""
    trainer = make(f"trainer.precision={precision}", "trainer.epochs=3")
    trainer.fit()
    full = make("trainer.epochs=3", folder="full")
    full.fit()
    assert trainer.run.history["val"]["loss"] == pytest.approx(full.run.history["val"]["loss"], rel=0.05)


def test_averaged_weights_are_what_is_kept(make) -> None:
    """With an average, best.pt holds the averaged weights, not the last iterate."""
    trainer = make("trainer.ema_decay=0.95", "trainer.epochs=1")
    trainer.fit()
    state = checkpoint.load(trainer.run.folder / rundir.BEST)
    assert not same(state["model"], weights(trainer))
    with trainer._averaged():
        assert same(state["model"], weights(trainer))


def test_batch_norm_of_one_sample(make) -> None:
    """A last minibatch of one sample trains where the model can take it, and is refused before training where not."""
    make("model.batch_norm=true", "data.limit_train=65", "data.batch_size=64", "trainer.epochs=1").fit()
    with pytest.raises(ConfigError, match=r"data\.batch_size"):
        make("model=lenet", "model.batch_norm=true", "data.limit_train=65", "data.batch_size=64", folder="b")


def test_initialisation_does_not_depend_on_what_ran_before(make) -> None:
    """Weights are a function of the seed alone."""
    first = make()
    torch.rand(100)
    second = make(folder="b")
    assert same(weights(first), weights(second))
    assert streams.seed_of(0, "initialisation") != streams.seed_of(1, "initialisation")


@pytest.mark.cuda
def test_cuda_starts_like_the_cpu(make) -> None:
    """Initialisation, order and the first loss are those of the CPU."""
    losses = []
    for device in ("cpu", "cuda"):
        trainer = make(f"device={device}", folder=device)
        result, _ = trainer._step(next(iter(trainer.run.data.epoch(0))))
        losses.append(float(result.loss))
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def finish_like(make, stopped: Trainer, whole: Trainer, *options: str) -> Trainer:
    """Resumes `stopped` and expects the end of `whole`."""
    resumed = make(*options, folder=stopped.run.folder.name)
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    fit_and_test(resumed)
    assert same(weights(whole), weights(resumed))
    assert whole.run.history == resumed.run.history
    assert (whole.run.best, whole.run.epoch, whole.run.step) == (resumed.run.best, resumed.run.epoch, resumed.run.step)
    return resumed


@pytest.mark.parametrize("steps", [8, 11])
def test_a_run_stopped_at_its_last_update_is_still_validated(make, steps: int) -> None:
    """A signal during the very last update, at an epoch's end or within, loses neither validation nor test."""
    options = (f"trainer.steps={steps}", "data.limit_train=500")
    whole = make(*options, folder="whole")
    fit_and_test(whole)
    stopped = make(*options, folder="stopped")
    original = stopped._step

    def step(batch):
        if stopped.run.step == steps - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(batch)

    stopped._step = step  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as caught:
        stopped.fit()
    assert caught.value.code == 143
    finish_like(make, stopped, whole, *options)


def test_a_signal_during_validation_abandons_it(make) -> None:
    """It does not wait for the validation's end; the resumed run validates anew and ends like one never stopped."""
    options = ("trainer.epochs=3", "trainer.patience=2", "scheduler=halve_on_plateau", "trainer.precision=fp16")
    whole = make(*options, folder="whole")
    fit_and_test(whole)
    stopped = make(*options, folder="stopped")
    original = stopped.evaluate

    def evaluate(split):
        signal.raise_signal(signal.SIGINT)
        return original(split)

    stopped.evaluate = evaluate  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as caught:
        stopped.fit()
    assert (caught.value.code, stopped.run.epoch, stopped.batch) == (130, 0, stopped.run.steps_per_epoch)
    assert stopped.run.history == {}
    finish_like(make, stopped, whole, *options)


def test_timing_survives_an_interruption(make) -> None:
    """Every epoch has its training time, that before the interruption included."""
    stopped = make(folder="stopped")
    train_until(stopped, 5)
    before = stopped.epoch_seconds[0]
    assert len(stopped.epoch_seconds) == 1
    assert before > 0
    resumed = make(folder="stopped")
    state = checkpoint.load(resumed.run.folder / rundir.LAST)
    state["epoch_seconds"] = [1000.0]
    resumed.load_state_dict(state)
    resumed.fit()
    assert len(resumed.epoch_seconds) == 2
    assert resumed.epoch_seconds[0] > 1000 > resumed.epoch_seconds[1]


def test_optimizer_settings_can_be_overridden_on_resuming(make) -> None:
    """`optimizer.weight_decay` given with `resume` counts; the optimizer's moments are those of the checkpoint."""
    stopped = make("optimizer=adamw", "optimizer.weight_decay=0.0", folder="stopped")
    train_until(stopped, 5)
    resumed = make("optimizer=adamw", "optimizer.weight_decay=0.3", "optimizer.lr=0.5", folder="stopped")
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    assert [g["weight_decay"] for g in resumed.run.optimizer.param_groups] == [0.3, 0.0]
    first = resumed.trainable[0]
    saved = stopped.run.optimizer.state[stopped.trainable[0]]["exp_avg"]
    assert torch.equal(resumed.run.optimizer.state[first]["exp_avg"], saved)
    resumed._step(next(iter(resumed.run.data.epoch(0))))
    assert resumed.run.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * resumed.scheduler.factor(5))


class Logged(Callback):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.scalars: list[dict[str, float]] = []
        self.gradients: list[float] = []

    def on_step(self, run, result) -> None:
        flat = torch.cat([p.grad.flatten() for p in run.model.parameters()])
        self.gradients.append(float(torch.linalg.vector_norm(flat)))

    def on_log(self, run, scalars) -> None:
        self.scalars.append(dict(scalars))


@pytest.mark.parametrize("options", [(), ("trainer.clip_norm=0.01",)], ids=["unclipped", "clipped"])
def test_logged_gradient_norm_is_that_of_the_objective(make, options: tuple[str, ...]) -> None:
    """It is neither multiplied by the loss scale of fp16 nor clipped."""
    full, half = Logged(), Logged()
    for logged, precision in ((full, "fp32"), (half, "fp16")):
        more = options if precision == "fp16" else ()
        trainer = make("trainer.steps=1", f"trainer.precision={precision}", *more, folder=precision)
        trainer.callbacks = [logged]
        trainer.fit()
    assert half.scalars[0]["gradient_norm"] == pytest.approx(full.scalars[0]["gradient_norm"], rel=0.02)
    if options:
        assert half.gradients[0] <= 0.01 * (1 + 1e-4)
    else:
        assert half.gradients[0] == pytest.approx(full.gradients[0], rel=0.02)


def test_accumulated_parts_are_means_over_the_minibatch(make) -> None:
    """The sparsity penalty that is logged is that of all micro-batches, not of the last."""
    options = ("model=autoencoder", "task=reconstruction", "regularization=[code_sparsity]")
    one, three = make(*options, folder="a"), make(*options, "trainer.accumulate=3", folder="b")
    batch = next(iter(one.run.data.epoch(0)))
    names = "penalty/code_sparsity"
    torch.testing.assert_close(one._step(batch)[0].parts[names], three._step(batch)[0].parts[names])


@pytest.mark.parametrize("bad_step", [0, 6, 13])
def test_divergence_is_found_where_losses_are_not_read(make, bad_step: int) -> None:
    """Where reading each loss would wait for the device, the run is replayed to the step and layer that went wrong, and
    no checkpoint holds weights that are not finite."""
    trainer = make("trainer.validate_every_epochs=2", "trainer.checkpoint_every_steps=4")
    trainer.reads_losses = False  # as on CUDA
    layer = [m for m in trainer.run.model.modules() if isinstance(m, torch.nn.Linear)][-1]
    name = next(n for n, m in trainer.run.model.named_modules() if m is layer)

    def spoil(module, inputs, output):
        return output * float("nan") if trainer.run.step == bad_step and module.training else output

    layer.register_forward_hook(spoil)
    with pytest.raises(Diverged, match=rf"layer '{name}' is not finite at step {bad_step + 1}"):
        trainer.fit()
    assert trainer.run.step == bad_step
    if bad_step:
        state = checkpoint.load(trainer.run.folder / rundir.LAST)
        assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_weights_that_are_not_finite_are_never_saved(make) -> None:
    """A gradient that is not finite although the loss was: the checkpoint before it stays."""
    trainer = make("trainer.checkpoint_every_steps=3")
    original = trainer.run.optimizer.step

    def step(*args):
        original(*args)
        if trainer.run.step == 5:
            with torch.no_grad():
                trainer.trainable[0][0, 0] = float("nan")

    trainer.run.optimizer.step = step  # type: ignore[method-assign]
    with pytest.raises(Diverged, match=r"weights '.*' are not finite"):
        trainer.fit()
    assert checkpoint.load(trainer.run.folder / rundir.LAST)["counters"]["step"] == 3


@pytest.mark.parametrize("key", ["trainer.monitor", "scheduler.monitor"])
def test_an_unknown_monitor_is_refused_before_training(make, key: str) -> None:
    """A metric of another kind of target is not waited for until the first validation."""
    with pytest.raises(ConfigError, match=rf"{key}: 'val/rmse' is not reported; allowed: .*val/accuracy"):
        make(f"{key}=val/rmse", *(["scheduler=halve_on_plateau"] if key[0] == "s" else []))


def test_batch_norm_of_one_sample_in_a_micro_batch(make) -> None:
    """Micro-batches count too; a last minibatch that is never reached does not."""
    batch_norm = ("model=lenet", "model.batch_norm=true", "data.batch_size=64")
    with pytest.raises(ConfigError, match=r"trainer\.accumulate"):
        make(*batch_norm, "data.limit_train=69", "trainer.accumulate=4", folder="a")
    make(*batch_norm, "data.limit_train=65", "trainer.limit_train_batches=1", "trainer.epochs=1", folder="b").fit()


class Noisy(torch.nn.Module):
    """A user's model that draws random numbers in a function."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(F.dropout(x, 0.5, self.training))


def test_a_users_random_functions_are_a_function_of_seed_and_step(make, monkeypatch: pytest.MonkeyPatch) -> None:
    """`F.dropout` in a user's forward gives the same numbers after a resume, whatever was drawn before."""
    original = MODELS.build

    def build(*args, **context):
        return Noisy(original(*args, **context))

    monkeypatch.setattr(MODELS, "build", build)
    whole = make(folder="whole")
    fit_and_test(whole)
    stopped = make(folder="stopped")
    train_until(stopped, 5)
    torch.rand(100)
    finish_like(make, stopped, whole)
    other = make("seed=1", folder="other")
    other.run.model.load_state_dict(make(folder="first").run.model.state_dict())
    batch = next(iter(whole.run.data.epoch(0)))
    assert not torch.equal(other._step(batch)[0].loss, make(folder="again")._step(batch)[0].loss)


def test_the_saved_configuration_names_the_threads(make) -> None:
    """The thread count changes the last bits, so a resumed run takes that of its start."""
    trainer = make()
    assert resolved(trainer)["trainer"]["threads"] == torch.get_num_threads()


def test_changed_data_are_noticed_on_resuming(make, caplog: pytest.LogCaptureFixture) -> None:
    """A resumed run says that its data are not those of the checkpoint."""
    stopped = make(folder="stopped")
    train_until(stopped, 3)
    for options, said in (((), False), (("data.split_seed=1",), True)):
        resumed = make(*options, folder="stopped")
        resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
        assert ("data are not those" in caplog.text) is said


def test_results_are_strict_json_whatever_the_best_value(make) -> None:
    """A monitored value that is infinite becomes null, and a limited test says so."""
    trainer = make("trainer.limit_test_batches=1", "trainer.epochs=1")
    trainer.evaluate = lambda split: (
        {"loss": 1.0, "accuracy": 0.5}
        if split == "test"
        else {  # type: ignore
            "loss": 1.0,
            "accuracy": float("-inf"),
        }
    )
    trainer.run.monitor = "val/accuracy"
    fit_and_test(trainer)
    results = json.loads((trainer.run.folder / "results.json").read_text())
    assert results["best"]["value"] is None
    assert "only its first 1 batches" in results["test"]


def test_a_signal_during_the_test_is_an_interruption(make) -> None:
    """It leaves a results.json that says so, and the resumed run tests the best checkpoint."""
    whole = make("trainer.epochs=1", folder="whole")
    fit_and_test(whole)
    stopped = make("trainer.epochs=1", folder="stopped")
    original = stopped.evaluate

    def evaluate(split):
        if split == "test":
            signal.raise_signal(signal.SIGTERM)
        return original(split)

    stopped.evaluate = evaluate  # type: ignore[method-assign]
    with pytest.raises(Interrupted) as caught:
        fit_and_test(stopped)
    assert caught.value.code == 143
    results = json.loads((stopped.run.folder / "results.json").read_text())
    assert (results["status"], results["test"]) == ("interrupted", "not read")
    finish_like(make, stopped, whole, "trainer.epochs=1")


def test_a_run_killed_between_last_and_best_ends_like_one_never_stopped(make) -> None:
    """best.pt is made again from last.pt of the same epoch."""
    whole = make(folder="whole")
    fit_and_test(whole)
    stopped = make(folder="stopped")

    def killed(**options: object) -> None:
        raise KeyboardInterrupt

    stopped._save_best = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    assert not (stopped.run.folder / rundir.BEST).exists()
    resumed = finish_like(make, stopped, whole)
    kept = [checkpoint.load(trainer.run.folder / rundir.BEST) for trainer in (whole, resumed)]
    assert kept[0]["best"] == kept[1]["best"]
    assert same(kept[0]["model"], kept[1]["model"])


def test_results_name_the_weights_that_were_tested(make, caplog: pytest.LogCaptureFixture) -> None:
    """Where best.pt is of an epoch that the resumed run did not repeat alike, results.json says which one was tested."""
    trainer = make("trainer.epochs=1")
    trainer.fit()
    path = trainer.run.folder / rundir.BEST
    state = {key: value for key, value in checkpoint.load(path).items() if key != "format"}
    later = {**state["best"], "epoch": 7, "step": 77}
    checkpoint.save(path, {**state, "best": later})
    trainer.test()
    assert trainer.run.best == later
    assert "best.pt is of epoch 7" in caplog.text


class Counting(torch.optim.SGD):
    """A user's optimizer that keeps a number among its settings, as Prodigy and D-Adaptation do."""

    def step(self, closure=None):  # type: ignore[override]
        for group in self.param_groups:
            group["updates"] = group.get("updates", 0) + 1
        return super().step(closure)


def test_what_an_optimizer_keeps_among_its_settings_is_resumed(make) -> None:
    """The saved value counts, unless the setting itself was overridden on resuming."""
    stopped = make("optimizer=momentum", folder="stopped")
    parameters = list(stopped.run.model.parameters())
    stopped.run.optimizer = Counting(parameters, lr=0.1, weight_decay=0.0)
    stopped.built_settings = settings_of(stopped.run.optimizer)
    train_until(stopped, 5)
    state = checkpoint.load(stopped.run.folder / rundir.LAST)
    fresh = Counting(parameters, lr=0.1, weight_decay=0.3)
    load_state(fresh, state["optimizer"])
    assert [fresh.param_groups[0][name] for name in ("updates", "lr", "weight_decay")] == [5, 0.1, 0.3]


@pytest.mark.parametrize("words", [(), ("trainer.accumulate=2",), ("trainer.ema_decay=0.5",)], ids=" ".join)
def test_outputs_that_are_views_of_a_parameter(make, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    """The training metrics are those of the outputs before the update, as of a model that gives copies."""
    histories = []
    for forward in (lambda self, x: self.outputs.repeat(len(x), 1), lambda self, x: self.outputs.expand(len(x), -1)):
        monkeypatch.setattr(Constant, "forward", forward)
        trainer = make(
            "data=poly1d", "data.samples=200", "model=constant", "optimizer=sgd", "optimizer.lr=0.3", "trainer.epochs=2",
            *words, folder=str(len(histories)),
        )  # fmt: skip
        torch.nn.init.ones_(trainer.run.model.outputs)
        trainer.fit()
        histories.append((trainer.run.history["train"], weights(trainer)["outputs"].tolist()))
    assert histories[0] == histories[1]


def test_only_outputs_in_the_memory_of_a_parameter_are_copied(make) -> None:
    """A view at an offset is; what a layer computes is not, which would cost time."""
    trainer = make()
    trainer.storages = storages(trainer.trainable)
    parameter = trainer.run.model.head.weight.detach()
    assert trainer._kept(parameter[2:, 3:]).data_ptr() != parameter[2:, 3:].data_ptr()
    computed = trainer.run.model(torch.zeros(4, 1, 8, 8)).detach()
    assert trainer._kept(computed) is computed


def saving(trainer: Trainer) -> list[tuple[str, int]]:
    """The checkpoints that the trainer writes from now on: file and epoch."""
    original, found = trainer._save, []

    def save(name: Path, state: dict, **options: object) -> None:
        found.append((name.name, trainer.run.epoch))
        original(name, state, **options)

    trainer._save = save  # type: ignore[method-assign]
    return found


SIX = ("trainer.epochs=6", "data.limit_train=256", "data.limit_val=64", "data.limit_test=64")  # of two updates each


def test_epochs_between_checkpoints(make) -> None:
    """last.pt after every fourth epoch and the last one, the best.pt up to there with it; their contents do not change."""
    every, fourth = make(*SIX, folder="every"), make(*SIX, "trainer.checkpoint_every_epochs=4", folder="fourth")
    saved = [saving(trainer) for trainer in (every, fourth)]
    for trainer in (every, fourth):
        fit_and_test(trainer)
    best = [epoch for name, epoch in saved[0] if name == "best.pt"]
    assert [epoch for name, epoch in saved[1] if name == "best.pt"] == [
        written for written, first in ((4, 1), (6, 5)) if any(first <= epoch <= written for epoch in best)
    ]
    assert [epoch for name, epoch in saved[0] if name == "last.pt"] == [1, 2, 3, 4, 5, 6]
    assert [epoch for name, epoch in saved[1] if name == "last.pt"] == [4, 6]
    for name in (rundir.LAST, rundir.BEST):
        a, b = (checkpoint.load(trainer.run.folder / name) for trainer in (every, fourth))
        assert same(a["model"], b["model"])
        assert a["best"] == b["best"]


def test_killed_between_checkpoints(make) -> None:
    """A run killed in the fourth epoch, when the third was the best, has the best.pt of last.pt, and ends like the others."""
    options = (*SIX, "trainer.checkpoint_every_epochs=2", "trainer.ema_decay=0.9", "scheduler=halve_on_plateau")
    whole = make(*options, folder="whole")
    fit_and_test(whole)
    stopped = make(*options, folder="stopped")
    original = stopped._step

    def step(batch):
        if stopped.run.step == 7:
            raise KeyboardInterrupt
        return original(batch)

    stopped._step = step  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    files = [checkpoint.load(stopped.run.folder / name) for name in (rundir.LAST, rundir.BEST)]
    assert stopped.run.best["epoch"] == 3
    assert (files[0]["counters"]["epoch"], files[1]["best"]["epoch"]) == (2, 2)
    finish_like(make, stopped, whole, *options)
    a, b = (checkpoint.load(trainer.run.folder / rundir.BEST) for trainer in (whole, stopped))
    assert same(a["model"], b["model"])


@pytest.mark.parametrize("hook", ["on_evaluation", "on_epoch_end", "on_step"])
def test_a_signal_between_checkpoints_saves_at_once(make, hook: str) -> None:
    """Wherever SIGTERM comes, last.pt holds the state at which the run stopped, and the resumed run ends alike."""
    options = (*SIX, "trainer.checkpoint_every_epochs=5")
    whole = make(*options, folder="whole")
    fit_and_test(whole)
    stopped = make(*options, folder="stopped")

    class Stops(Callback):
        pass

    def stop(self, run, *args) -> None:
        if (run.epoch, run.step) == ((1, 3) if hook == "on_step" else (2, 4)) and not stopped.signals.arrived:
            signal.raise_signal(signal.SIGTERM)

    setattr(Stops, hook, stop)
    stopped.callbacks.append(Stops())
    with pytest.raises(Interrupted):
        stopped.fit()
    state = checkpoint.load(stopped.run.folder / rundir.LAST)
    assert state["counters"]["step"] == stopped.run.step == (3 if hook == "on_step" else 4)
    assert state["counters"]["epoch"] == stopped.run.epoch == (1 if hook == "on_step" else 2)
    finish_like(make, stopped, whole, *options)


@pytest.mark.parametrize("error", [Pruned, ValueError])
def test_an_error_after_an_epoch_finds_it_saved(make, error: type[Exception]) -> None:
    """A run that is pruned, or whose callback fails, after its third epoch has last.pt of it and the best.pt up to there."""
    stopped = make(*SIX, "trainer.checkpoint_every_epochs=5")

    class Fails(Callback):
        def on_epoch_end(self, run) -> None:
            if run.epoch == 3:
                raise error("enough")

    stopped.callbacks.append(Fails())
    with pytest.raises(error):
        stopped.fit()
    last, best = (checkpoint.load(stopped.run.folder / name) for name in (rundir.LAST, rundir.BEST))
    assert last["counters"]["epoch"] == 3
    assert best["best"] == last["run"]["best"] == stopped.run.best


def test_the_last_epoch_is_saved_wherever_it_ends(make) -> None:
    """Early stopping, a number of updates within an epoch: last.pt is of the end."""
    for words in (("trainer.patience=1", "trainer.min_delta=100"), ("trainer.steps=5",)):
        trainer = make(*SIX, "trainer.checkpoint_every_epochs=100", *words)
        trainer.fit()
        assert trainer.run.epoch < 6
        counters = checkpoint.load(trainer.run.folder / rundir.LAST)["counters"]
        assert (counters["epoch"], counters["step"]) == (trainer.run.epoch, trainer.run.step)


@pytest.mark.parametrize(("batch_size", "epochs"), [(128, 500), (1, 4), (1000, 1000)])
def test_auto_epochs_between_checkpoints(make, batch_size: int, epochs: int) -> None:
    """As many epochs as make 1,000 updates: of 256 samples in minibatches."""
    trainer = make(*SIX, "trainer.checkpoint_every_epochs=auto", f"data.batch_size={batch_size}")
    assert trainer._epochs_between() == epochs


@pytest.mark.parametrize("given", ["0", "often"])
def test_wrong_epochs_between_checkpoints(cli, given: str) -> None:
    """One line."""
    done = cli("model=mlp", f"trainer.checkpoint_every_epochs={given}")
    assert (done.rc, len(done.stderr.splitlines())) == (1, 1)
    assert "trainer.checkpoint_every_epochs: got" in done.stderr
