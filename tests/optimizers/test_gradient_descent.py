"""What the courses say of gradient descent, on whole small runs: step size, noise of minibatches, starting points, averages."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dlrun import checkpoint, rundir
from dlrun.build import build_trainer, check
from dlrun.models._activations import activation_module
from dlrun.registry import ConfigError
from dlrun.signals import Interrupted
from dlrun.streams import Stream
from dlrun.trainer import Trainer

BASE = ("device=cpu", "callbacks=none", "scheduler=constant")
LINE = (
    "data=poly1d",
    "data.samples=200",
    "model=linear",
    "optimizer=sgd",
)  # standardised: its Hessian is 2 I, so that L = 2
FULL = "data.batch_size=1000000"


@pytest.fixture
def make(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of a composed and checked configuration, in a folder of its own."""
    folders = iter(range(100))

    def build(*overrides: str) -> Trainer:
        config = composed(*BASE, *overrides)
        check(config)
        folder = tmp_path / f"run{next(folders)}"
        folder.mkdir()
        return build_trainer(config, folder)

    return build


def train_losses(trainer: Trainer) -> list[float]:
    """The training loss of each epoch; in an epoch of one step, that before its update."""
    losses: list[float] = []
    original = trainer._report

    def report(split: str, metrics: dict[str, float]) -> None:
        losses.extend([metrics["loss"]] if split == "train" else [])
        original(split, metrics)

    trainer._report = report  # type: ignore[method-assign]
    trainer.fit()
    return losses


def gradient_of(trainer: Trainer, batch) -> Tensor:
    """The gradient of the mean loss of a batch, as one vector."""
    run = trainer.run
    loss = run.task(run.model, batch, Stream(0, "task")).loss
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, trainer.trainable)])


@pytest.mark.curriculum("O01")
def test_full_batch_descent_never_rises_below_the_bound(make) -> None:
    """A minibatch larger than the set is the whole set: one step per epoch, and for a step size below 2 / L = 1 the loss falls
    in each of them; above it, it rises."""
    trainer = make(*LINE, FULL, "optimizer.lr=0.95", "trainer.epochs=30")
    assert trainer.run.steps_per_epoch == 1
    losses = train_losses(trainer)
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(losses))
    assert losses[-1] < 0.9 * losses[0]
    rising = train_losses(make(*LINE, FULL, "optimizer.lr=1.05", "trainer.epochs=30"))
    assert rising[-1] > 2 * rising[0]


@pytest.mark.curriculum("O02")
@pytest.mark.parametrize(("lr", "factor"), [("0.19", -0.9), ("0.21", -1.1)])
def test_step_size_bound_of_a_run(make, tmp_path: Path, lr: str, factor: float) -> None:
    """A quadratic with L = 10 (one input, always sqrt 5 in size): the distance to the optimum is multiplied by 1 - 10 lr in
    each step, so that 0.19 converges and 0.21 diverges."""
    rows = [f"{sign * math.sqrt(5)},{3 * sign + i % 3}" for i, sign in enumerate((1, -1) * 20)]
    (tmp_path / "table.csv").write_text("\n".join(["x,y", *rows]))
    words = (
        "data=csv",
        f"data.path={tmp_path / 'table.csv'}",
        "data.target=y",
        "data.kind=real",
        "data.normalize=unit",
        FULL,
    )
    trainer = make(
        *words, "model=linear", "model.bias=false", "optimizer=sgd", f"optimizer.lr={lr}", "trainer.epochs=40"
    )
    batch = next(iter(trainer.run.data.split("train")))
    optimum = ((batch.inputs * batch.targets).sum() / batch.inputs.square().sum()).item()
    start = trainer.run.model.head.weight.item() - optimum
    trainer.fit()
    end = trainer.run.model.head.weight.item() - optimum
    assert end == pytest.approx(start * factor**40, rel=1e-2, abs=1e-5)


@pytest.mark.parametrize("name", ["proximal_l1", "max_norm", "non_negative"])
def test_flatness_is_not_asked_for_where_weights_are_held(make, name: str) -> None:
    """At a constraint or a kink the gradient is not 0 however long one trains: refused rather than never reached."""
    with pytest.raises(ConfigError, match=r"^trainer\.min_grad_norm: cannot be combined"):
        make(*LINE, FULL, f"regularization=[{name}]", "trainer.min_grad_norm=1e-3")


@pytest.mark.curriculum("O01")
def test_it_stops_where_the_objective_is_flat(make) -> None:
    """`min_grad_norm` ends the run at the first epoch whose gradient over the training set is below it, not before."""
    words = (
        *LINE,
        FULL,
        "optimizer.lr=0.2",
        "trainer.epochs=200",
        "regularization=l2",
        "regularization.l2.strength=0.01",
    )
    trainer = make(*words, "trainer.min_grad_norm=1e-3")
    norms: list[float] = []
    original = trainer._report

    def report(split: str, metrics: dict[str, float]) -> None:
        norms.extend([metrics["full_gradient_norm"]] if split == "train" else [])
        original(split, metrics)

    trainer._report = report  # type: ignore[method-assign]
    trainer.fit()
    assert 5 < trainer.run.epoch == len(norms) < 60
    assert norms[-1] < 1e-3 <= min(norms[:-1])
    x = torch.cat([b.inputs for b in trainer.run.data.split("train")]).double()
    y = torch.cat([b.targets for b in trainer.run.data.split("train")]).double()
    w, b = trainer.run.model.head.weight.detach().double(), trainer.run.model.head.bias.detach().double()
    residual = x @ w.T + b - y
    by_hand = torch.cat([(2 * residual * x).mean(0) + 0.02 * w[0], (2 * residual).mean(0)])
    assert norms[-1] == pytest.approx(by_hand.norm().item(), rel=1e-3)


def test_asking_for_flatness_changes_no_number(make) -> None:
    """With a limit that is never reached, minibatches, dropout and batch norm train to the same bits as without."""
    words = (
        "data=digits",
        "data.limit_train=100",
        "data.batch_size=32",
        "model=mlp",
        "model.hidden=[8]",
        "trainer.epochs=2",
    )
    ends = []
    for extra in ((), ("trainer.min_grad_norm=1e-30",)):
        trainer = make(*words, "model.batch_norm=true", "optimizer=adam", *extra)
        trainer.fit()
        ends.append(trainer)
    for name, value in ends[0].run.model.state_dict().items():
        assert torch.equal(value, ends[1].run.model.state_dict()[name]), name
    assert ends[0].run.history["val"] == ends[1].run.history["val"]


def test_a_run_that_was_flat_is_over_when_resumed(make) -> None:
    """Resumed from its last checkpoint, nothing is trained further; stopped in the validation before, it is validated first."""
    words = (*LINE, FULL, "optimizer.lr=0.4", "trainer.epochs=200", "trainer.min_grad_norm=1e-2")
    whole, stopped, resumed = make(*words), make(*words), make(*words)
    whole.fit()
    epochs = whole.run.epoch
    assert epochs < 200
    again = make(*words)
    again.load_state_dict(checkpoint.load(whole.run.folder / rundir.LAST))
    assert not again.unfinished

    original = stopped.evaluate

    def evaluate(split):
        if stopped.run.step == epochs:
            raise Interrupted(143, "stopped")
        return original(split)

    stopped.evaluate = evaluate  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        stopped.fit()
    resumed.load_state_dict(checkpoint.load(stopped.run.folder / rundir.LAST))
    assert resumed.unfinished
    resumed.fit()
    assert (resumed.run.epoch, resumed.run.history) == (whole.run.epoch, whole.run.history)


@pytest.mark.curriculum("O03", "D08", "R02")
def test_an_epoch_of_single_samples(make) -> None:
    """With batch_size=1 an epoch is as many updates as there are samples, each θ <- θ - α (∇ℓ + λ ∇Ω) of one of them."""
    words = (
        "data=affine",
        "data.samples=40",
        "data.batch_size=1",
        "model=linear",
        "optimizer=sgd",
        "optimizer.lr=0.05",
    )
    trainer = make(*words, "regularization=l2", "regularization.l2.strength=0.1", "trainer.epochs=1")
    model = copy.deepcopy(trainer.run.model)
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    for batch in trainer.run.data.epoch(0):
        residual = 2 * (batch.inputs @ weight.T + bias - batch.targets)  # (1, 2)
        weight = weight - 0.05 * (residual.T @ batch.inputs + 0.2 * weight)
        bias = bias - 0.05 * residual[0]
    trainer.fit()
    assert trainer.run.step == trainer.run.spec.num_train > 20
    torch.testing.assert_close(trainer.run.model.head.weight.detach(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trainer.run.model.head.bias.detach(), bias, rtol=1e-4, atol=1e-6)


@pytest.mark.curriculum("O05")
def test_noise_of_the_gradient_falls_with_the_root_of_the_batch(make) -> None:
    """The slope of log standard deviation against log batch size, from 2 to 128 samples, is -0.5 (within 0.1)."""
    sizes, deviations = (2, 8, 32, 128), []
    for size in sizes:
        trainer = make("data=poly1d", "data.samples=8000", f"data.batch_size={size}", "model=linear")
        batches = [batch for batch in trainer.run.data.epoch(0) if len(batch.indices) == size]
        gradients = torch.stack([gradient_of(trainer, batch) for batch in batches[:200]])
        deviations.append(gradients.std(0).norm().item())
    slope = np.polyfit(np.log(sizes), np.log(deviations), 1)[0]
    assert slope == pytest.approx(-0.5, abs=0.1)


@pytest.mark.curriculum("O06")
def test_minibatch_gradients_are_unbiased(make) -> None:
    """Over an epoch of equal minibatches their mean is the gradient of the whole set."""
    words = ("data=digits", "data.limit_train=128", "model=mlp", "model.hidden=[16]", "model.dropout=0")
    parts, whole = make(*words, "data.batch_size=16"), make(*words, FULL)
    mean = torch.stack([gradient_of(parts, batch) for batch in parts.run.data.epoch(0)]).mean(0)
    torch.testing.assert_close(mean, gradient_of(whole, next(iter(whole.run.data.epoch(0)))), atol=1e-6, rtol=0)


def weights_after_each_update(trainer: Trainer) -> list[Tensor]:
    """Those of a linear model; filled while it trains."""
    weights: list[Tensor] = []
    original = trainer._step

    def step(batch: Any) -> Any:
        found = original(batch)
        weights.append(trainer.run.model.head.weight.detach().clone())
        return found

    trainer._step = step  # type: ignore[method-assign]
    return weights


@pytest.mark.curriculum("O12")
def test_the_averaged_run_scatters_less(make) -> None:
    """On convex softmax regression the weights that `regularization=weight_averaging` keeps, the mean of those after every
    update, scatter less over the orders of the samples than the last ones; they are what is evaluated and best.pt holds."""
    words = (
        "data=blobs",
        "data.std=2",
        "data.limit_train=160",
        "data.batch_size=4",
        "model=linear",
        "model.init=zeros",
    )
    last, kept = [], []
    for seed in range(6):
        trainer = make(
            *words,
            "optimizer=sgd",
            "optimizer.lr=0.5",
            "regularization=[weight_averaging]",
            f"seed={seed}",
            "trainer.epochs=1",
        )
        iterates = weights_after_each_update(trainer)
        trainer.fit()
        last.append(trainer.run.model.head.weight.detach().clone())
        state = checkpoint.load(trainer.run.folder / rundir.BEST)["model"]
        kept.append(state["head.weight"])
        torch.testing.assert_close(kept[-1], torch.stack(iterates).mean(0), atol=1e-5, rtol=0)
        checkpoint.load_weights(trainer.run.model, {"model": state})
        trainer.average = None
        assert trainer.evaluate("val")["loss"] == trainer.run.best["value"]
    assert torch.stack(kept).var(0).sum() < 0.5 * torch.stack(last).var(0).sum()


@pytest.mark.curriculum("O15")
def test_sweep_over_the_learning_rate(cli, tmp_path: Path) -> None:
    """From 1e-5 to 10 the final loss falls and rises again; the run that diverges is recorded, the sweep goes on to its end."""
    done = cli(
        *LINE, "data.coefficients=[1,2]", *BASE, "trainer.epochs=3", "optimizer.lr=10,1e-5,1e-3,1e-1,9e-1",
        "hydra.sweep.dir=sweep", "hydra/launcher=basic", "-m",
    )  # fmt: skip
    assert done.rc == 4, done.stderr
    assert "5 runs, 1 failed" in done.stdout
    results = [json.loads((tmp_path / "sweep" / str(i) / "results.json").read_text()) for i in range(5)]
    assert [each["status"] for each in results] == ["diverged", *["finished"] * 4]
    slow, better, best, fast = (each["metrics"]["val"]["loss"] for each in results[1:])
    assert slow > better > 10 * best
    assert fast > best


@pytest.mark.curriculum("O20")
def test_backpropagation_by_hand(make) -> None:
    """G_a = σ'(a) ∘ G_x, G_x = W^T G_a, ∇W = G_a h^T, ∇b = G_a from the output back: the gradients that a run computes."""
    trainer = make(
        "data=digits",
        "data.batch_size=32",
        "model=mlp",
        "model.hidden=[7,6,5]",
        "model.activation=tanh",
        "model.dropout=0",
    )
    batch = next(iter(trainer.run.data.epoch(0)))
    trainer._forward_backward(batch, 0, 1.0)
    layers = [m for m in trainer.run.model.modules() if isinstance(m, torch.nn.Linear)]
    hidden = [batch.inputs.flatten(1)]  # x0 .. x3
    with torch.no_grad():
        for layer in layers[:-1]:
            hidden.append(torch.tanh(hidden[-1] @ layer.weight.T + layer.bias))
        outputs = hidden[-1] @ layers[-1].weight.T + layers[-1].bias
        g_a = (torch.softmax(outputs, 1) - torch.nn.functional.one_hot(batch.targets, 10)) / 32
        for layer, x in zip(reversed(layers), reversed(hidden), strict=True):
            torch.testing.assert_close(layer.weight.grad, g_a.T @ x, atol=1e-6, rtol=0)
            torch.testing.assert_close(layer.bias.grad, g_a.sum(0), atol=1e-6, rtol=0)
            g_a = (g_a @ layer.weight) * (1 - x**2)  # σ' of the layer below, from its output
    assert len(layers) == 4


@pytest.mark.curriculum("O21", "P31")
def test_reverse_and_forward_mode() -> None:
    """z = sin x1 + x1 x2 at (2, 3): 6, 0.909, 6.909; one reverse pass gives (2.5839, 2), two forward passes the same."""
    x = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)

    def z(point: Tensor) -> Tensor:
        return torch.sin(point[0]) + point[0] * point[1]

    product, sine = x[0] * x[1], torch.sin(x[0])
    assert (product.item(), sine.item()) == pytest.approx((6, 0.9093), abs=1e-4)
    assert z(x).item() == pytest.approx(6.9093, abs=1e-4)
    reverse = torch.autograd.grad(z(x), x)[0]
    assert reverse.tolist() == pytest.approx([math.cos(2) + 3, 2])
    assert reverse.tolist() == pytest.approx([2.5839, 2], abs=1e-4)
    vjp = torch.func.vjp(z, x.detach())[1](torch.ones((), dtype=torch.float64))[0]
    jvp = [torch.func.jvp(z, (x.detach(),), (axis,))[1].item() for axis in torch.eye(2, dtype=torch.float64)]
    assert vjp.tolist() == pytest.approx(jvp)
    assert jvp == pytest.approx(reverse.tolist())


@pytest.mark.curriculum("O22")
def test_subgradients_at_kinks_are_zero(make) -> None:
    """At 0: of the ReLU, of max(0, -d s) and max(0, 1 - d s) at their kinks, and of |w| in the L1 penalty."""
    a = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(activation_module("relu")(a).sum(), a)[0].item() == 0
    for loss, score in (("perceptron", 0.0), ("hinge", 1.0)):
        run = make("data=xor", "data.labels=sign", "model=linear", f"loss={loss}").run
        s = torch.tensor([[score]], requires_grad=True)
        assert torch.autograd.grad(run.loss(s, torch.ones(1, 1)), s)[0].item() == 0
    trainer = make("data=xor", "model=linear", "model.init=zeros", "regularization=l1", "regularization.l1.strength=1")
    penalty = trainer.regularizers["l1"].penalty(trainer.run.model, torch.zeros(1, 1))
    assert torch.autograd.grad(penalty, trainer.run.model.head.weight)[0].tolist() == [[0, 0]]


@pytest.mark.curriculum("O26")
def test_wide_networks_end_alike_whatever_the_start(make) -> None:
    """On XOR, over 6 seeds, the final training losses of a net of 64 units scatter by less than a tenth of those of 2 units,
    some of which are stuck in a poor local minimum."""
    spread = {}
    for width in (2, 64):
        ends = []
        for seed in range(6):
            trainer = make(
                "data=xor", "data.samples=100", "data.batch_size=32", "model=mlp", f"model.hidden=[{width}]", "model.dropout=0",
                "optimizer=adam", "optimizer.lr=0.05", "trainer.epochs=12", "trainer.validate_every_epochs=12", f"seed={seed}",
            )  # fmt: skip
            trainer.fit()
            ends.append(trainer.run.history["train"]["loss"])
        spread[width] = np.std(ends)
    assert spread[64] < 0.1 * spread[2]


@pytest.mark.curriculum("O25", "D18")
def test_the_device_is_chosen_by_what_there_is(make) -> None:
    """device=auto takes the GPU where there is one, else the CPU; model and batches are there."""
    trainer = make("data=digits", "model=linear", "device=auto")
    wanted = "cuda" if torch.cuda.is_available() else "cpu"
    batch = next(iter(trainer.run.data.epoch(0)))
    assert {trainer.run.device.type, batch.inputs.device.type, trainer.trainable[0].device.type} == {wanted}


@pytest.mark.curriculum("M09")
def test_gradients_of_a_one_hidden_layer_network(make) -> None:
    """For h = w^T σ(Ux), a sigmoid output and cross-entropy: ∂/∂w = (σ(h) - y) σ(Ux), ∂/∂u_j = (σ(h) - y) w_j σ'(u_j x) x."""
    trainer = make("data=two_moons", "data.batch_size=16", "model=mlp", "model.hidden=[5]", "model.activation=sigmoid",
                   "model.init=glorot_uniform", "model.dropout=0")  # fmt: skip
    model, batch = trainer.run.model, next(iter(trainer.run.data.epoch(0)))
    trainer._forward_backward(batch, 0, 1.0)
    with torch.no_grad():
        u, w = model.hidden.dense1.weight, model.head.weight[0]  # (5, 2), (5,); all biases start at 0
        phi = 1 / (1 + torch.exp(-batch.inputs @ u.T))  # (16, 5)
        y = batch.targets[:, 0]
        h = phi @ w
        error = 1 / (1 + torch.exp(-h)) - y  # as -y (1 - σ) + (1 - y) σ
        torch.testing.assert_close(error, -y * (1 - torch.sigmoid(h)) + (1 - y) * torch.sigmoid(h))
        for_w = (error[:, None] * phi).mean(0)
        for_u = (error[:, None] * w * phi * (1 - phi)).T @ batch.inputs / 16
    torch.testing.assert_close(model.head.weight.grad[0], for_w, atol=1e-6, rtol=0)
    torch.testing.assert_close(model.hidden.dense1.weight.grad, for_u, atol=1e-6, rtol=0)
