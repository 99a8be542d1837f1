"""What minimising a loss leads to, on whole small runs: means, posteriors, convexity, the perceptron algorithm, a density."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dlrun.build import build_trainer, check
from dlrun.data.gaussians import Gaussians
from dlrun.losses._base import original_units
from dlrun.losses._build import build_loss
from dlrun.registry import ConfigError
from dlrun.spec import TargetSpec
from dlrun.trainer import Trainer

BASE = ("device=cpu", "callbacks=none", "scheduler=constant")
FULL = "data.batch_size=1000000"
ONLY_AT_THE_END = ("trainer.validate_every_epochs=1000000",)


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


def split(trainer: Trainer, name: str = "train") -> tuple[Tensor, Tensor]:
    """All inputs and targets of a split, as the network sees them."""
    batches = list(trainer.run.data.split(name))
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


# ---- regression -----------------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("L03")
def test_the_optimum_of_l2_is_the_conditional_mean(make, tmp_path: Path) -> None:
    """Targets are +1 with probability 0.7 where x = 0, and 0.2 where x = 1: the fit is 0.4 and -0.6, none of the targets."""
    rows = [f"0,{1 if i < 7 else -1}" for i in range(10)] + [f"1,{1 if i < 2 else -1}" for i in range(10)]
    (tmp_path / "table.csv").write_text("\n".join(["x,y", *rows * 20]))
    words = ("data=csv", f"data.path={tmp_path / 'table.csv'}", "data.target=y", "data.kind=real", "loss=l2", FULL)
    trainer = make(*words, "model=linear", "optimizer=sgd", "optimizer.lr=0.3", "trainer.epochs=60", *ONLY_AT_THE_END)
    trainer.fit()
    x, y = split(trainer)
    with torch.no_grad():
        means = original_units(trainer.run.model(x), trainer.run.loss.target).flatten()
    drawn = original_units(y, trainer.run.loss.target).flatten()
    for left, expected in ((True, 0.4), (False, -0.6)):
        here = (x[:, 0] < 0) == left
        assert means[here].unique().numel() == 1
        assert means[here][0].item() == pytest.approx(drawn[here].mean().item(), abs=1e-4)  # of the training samples
        assert means[here][0].item() == pytest.approx(expected, abs=0.1)  # of all


@pytest.mark.curriculum("T07", "L06")
def test_a_constant_rate_is_one_over_the_mean(make, tmp_path: Path) -> None:
    """The constant model under the exponential likelihood ends at λ = 1 / mean(y)."""
    y = np.random.default_rng(0).exponential(2.5, 300)
    (tmp_path / "waits.csv").write_text("\n".join(["x,y", *(f"{i % 3},{v:.6f}" for i, v in enumerate(y))]))
    words = ("data=csv", f"data.path={tmp_path / 'waits.csv'}", "data.target=y", "data.kind=non_negative")
    trainer = make(*words, FULL, "model=constant", "loss=exponential_nll", "optimizer=sgd", "optimizer.lr=0.5",
                   "trainer.epochs=40", *ONLY_AT_THE_END)  # fmt: skip
    trainer.fit()
    x, targets = split(trainer)
    rate = trainer.run.loss.rate_of(trainer.run.model(x))
    assert rate[0].item() == pytest.approx(1 / targets.mean().item(), rel=1e-4)


# ---- densities ------------------------------------------------------------------------------------------------------------


@pytest.mark.curriculum("L23", "T12")
def test_full_covariance_against_scipy() -> None:
    """-log N(y; μ, Σ) for three dimensions, against SciPy and the literal of the standard normal, (3 / 2) log 2π = 2.756816."""
    loss = build_loss({"name": "gaussian_full_nll"}, TargetSpec("real", 3))
    assert loss.num_outputs == 9
    outputs, targets = torch.randn(5, 9, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    values = loss.per_sample(outputs, targets)
    for row, target, value in zip(outputs.numpy(), targets.numpy(), values.tolist(), strict=True):
        factor = np.diag(np.sqrt(np.log1p(np.exp(row[3:6])) + 1e-6))
        factor[1, 0], factor[2, 0], factor[2, 1] = row[6:]
        density = multivariate_normal(row[:3], factor @ factor.T)
        assert value == pytest.approx(-density.logpdf(target), rel=1e-9)
    unit = torch.cat([torch.zeros(3), torch.full((3,), 1 - 1e-6).expm1().log(), torch.zeros(3)])[None]
    assert loss(unit, torch.zeros(1, 3)).item() == pytest.approx(2.756816, abs=1e-5)


def test_full_covariance_of_one_dimension_is_gaussian_nll() -> None:
    """Value, mean and deviation are those of the loss with one variance."""
    full, single = (build_loss({"name": name}, TargetSpec("real", 1)) for name in ("gaussian_full_nll", "gaussian_nll"))
    outputs, targets = torch.randn(6, 2), torch.randn(6, 1)
    torch.testing.assert_close(full(outputs, targets), single(outputs, targets))
    torch.testing.assert_close(full.std(outputs), single.std(outputs))
    torch.testing.assert_close(full.predict(outputs), single.predict(outputs))


def test_too_many_dimensions_for_a_covariance() -> None:
    """One line that counts the outputs."""
    with pytest.raises(
        ConfigError, match=r"needs 308504 outputs per sample for 784 dimensions, at most 4096 are allowed"
    ):
        build_loss({"name": "gaussian_full_nll"}, TargetSpec("real", 784))


@pytest.mark.curriculum("L23", "T12")
def test_a_gaussian_density_finds_sample_mean_and_covariance(make) -> None:
    """Gradient training of μ and a Cholesky factor ends at the sample mean and the sample covariance with divisor N, here of
    inputs in original units; labels are not looked at."""
    words = ("data=gaussians", "data.samples=300", "data.normalize=unit", FULL, "model=gaussian", "optimizer=nesterov")
    trainer = make(*words, "optimizer.lr=0.3", "scheduler=cosine", "trainer.epochs=190", *ONLY_AT_THE_END)
    trainer.fit()
    x = split(trainer)[0].double().numpy()
    mean, factor = trainer.run.loss.mean_and_factor(trainer.run.model(torch.zeros(1, 2)))
    np.testing.assert_allclose(mean[0].detach(), x.mean(0), atol=1e-3)
    np.testing.assert_allclose((factor[0] @ factor[0].T).detach(), np.cov(x.T, bias=True), atol=1e-3)


@pytest.mark.curriculum("T12")
def test_model_gaussian_stands_for_a_task_a_loss_and_a_model(composed) -> None:
    """It is the density task with a constant model under the likelihood with full covariance; the command line still wins."""
    short, long = composed("model=gaussian"), composed("task=density", "model=constant", "loss=gaussian_full_nll")
    assert all(short[group] == long[group] for group in ("task", "model", "loss"))
    assert composed("model=gaussian", "loss=gaussian_nll")["loss"]["name"] == "gaussian_nll"


def test_a_density_is_reported_in_original_units(make) -> None:
    """Whatever the inputs are standardised by, `nll` is that of SciPy's density at the inputs as they were drawn."""
    trainer = make("data=gaussians", "data.samples=300", "data.distance=4", "model=gaussian")
    with torch.no_grad():
        trainer.run.model.outputs.copy_(torch.tensor([0.3, -0.2, 0.5, 0.1, 0.7]))
    mean, factor = (
        t[0].detach().double().numpy() for t in trainer.run.loss.mean_and_factor(trainer.run.model.outputs[None])
    )
    centre, scale = np.array(trainer.run.spec.mean), np.array(trainer.run.spec.std)
    density = multivariate_normal(centre + scale * mean, np.outer(scale, scale) * (factor @ factor.T))
    raw = centre + scale * split(trainer, "val")[0].double().numpy()
    assert trainer.evaluate("val")["nll"] == pytest.approx(-density.logpdf(raw).mean(), rel=1e-5)


def test_a_density_needs_a_model_without_inputs(cli) -> None:
    """A network that sees what it is to predict is refused in one line."""
    done = cli("task=density", "data=gaussians", "model=mlp", "device=cpu", "callbacks=none")
    assert (
        done.rc,
        "needs a model whose outputs are the same for all inputs, MLP is none; these fit: constant" in done.stderr,
    ) == (1, True)
    assert len(done.stderr.strip().splitlines()) == 1


# ---- classification -------------------------------------------------------------------------------------------------------


CONVEX = ("optimizer=nesterov", "optimizer.lr=1.0", "model=linear", FULL, *ONLY_AT_THE_END)


@pytest.mark.curriculum("L12", "M05")
def test_softmax_regression_has_one_minimum(make) -> None:
    """Two seeds, with different large initial weights, end at the same loss to 1e-4."""
    ends, starts = [], []
    for seed in (0, 1):
        trainer = make("data=blobs", "data.std=2.0", "data.samples=400", *CONVEX, "model.init=he_normal", f"seed={seed}",
                       "trainer.epochs=90")  # fmt: skip
        starts.append(trainer.evaluate("train")["loss"])
        trainer.fit()
        ends.append(trainer.evaluate("train")["loss"])
    assert abs(starts[0] - starts[1]) > 0.05
    assert abs(ends[0] - ends[1]) < 1e-4


@pytest.mark.curriculum("M05")
def test_softmax_regression_of_mnist(make, data_dir: Path) -> None:
    """784 * 10 + 10 = 7,850 parameters reach about 92 % of the test digits in two epochs."""
    trainer = make("data=mnist", f"data.root={data_dir}", "model=linear", "trainer.epochs=2", "data.batch_size=128")
    assert sum(p.numel() for p in trainer.trainable) == 7850
    trainer.fit()
    assert trainer.test()["accuracy"] == pytest.approx(0.92, abs=0.01)


@pytest.mark.curriculum("M04")
def test_logistic_regression_equals_scikit_learn(make) -> None:
    """d + 1 = 3 parameters, which end within 1e-3 of those of LogisticRegression without penalty."""
    trainer = make("data=gaussians", "data.samples=500", *CONVEX, "trainer.epochs=120")
    assert sum(p.numel() for p in trainer.trainable) == 3
    trainer.fit()
    x, y = split(trainer)
    reference = LogisticRegression(C=np.inf, tol=1e-8).fit(x.double().numpy(), y.flatten().numpy())
    np.testing.assert_allclose(trainer.run.model.head.weight.detach(), reference.coef_, atol=1e-3)
    np.testing.assert_allclose(trainer.run.model.head.bias.detach(), reference.intercept_, atol=1e-3)


@pytest.mark.curriculum("L13", "T02")
def test_the_optimum_of_cross_entropy_is_the_posterior(make) -> None:
    """On two Gaussian classes, predicted probabilities differ from the Bayes posterior by less than 0.02 on average, for one
    logit and for two, and are calibrated: of each tenth the share of class 1 is that predicted, within 0.08."""
    source = Gaussians(0)
    for loss in ("bce", "ce"):
        trainer = make(
            "data=gaussians",
            f"loss={loss}",
            "model=linear",
            "scheduler=cosine",
            "optimizer.lr=0.1",
            "trainer.epochs=3",
        )
        trainer.fit()
        x, y = split(trainer, "test")
        with torch.no_grad():
            probability = trainer.run.loss.probabilities(trainer.run.model(x))[:, 0].double()
        spec = trainer.run.spec
        raw = x.double() * torch.tensor(spec.std) + torch.tensor(spec.mean)
        assert (probability - source.posterior(raw)).abs().mean() < 0.02
        for part in probability.argsort().chunk(10):
            assert y[part].double().mean().item() == pytest.approx(probability[part].mean().item(), abs=0.08)


@pytest.mark.curriculum("M06")
def test_regions_of_a_linear_classifier_are_convex(make) -> None:
    """Of 20,000 pairs of points of the same class in a plane of four classes, every midpoint is of that class."""
    trainer = make("data=blobs", "data.std=1.5", "data.samples=400", *CONVEX, "trainer.epochs=50")
    trainer.fit()
    points = 6 * torch.rand(2, 80000, 2, dtype=torch.float64) - 3
    model = trainer.run.model.double()

    def region(at: Tensor) -> Tensor:
        return trainer.run.loss.predict(model(at))

    first, second = region(points[0]), region(points[1])
    same = (first == second).nonzero().flatten()[:15000]
    assert len(same) == 15000
    assert first[same].unique().numel() == 4
    assert torch.equal(region(points[:, same].mean(0)), first[same])


PERCEPTRON = (
    "model=perceptron",
    "loss=perceptron",
    "optimizer=sgd",
    "optimizer.lr=1.0",
    "data.batch_size=1",
    "data.labels=sign",
)


@pytest.mark.curriculum("O17", "M03", "L15", "T26")
@pytest.mark.parametrize(("function", "separable"), [("and", True), ("or", True), ("xor", False)])
def test_the_perceptron_algorithm(make, function: str, separable: bool) -> None:
    """On AND and OR it ends with no error after finitely many passes, with a loss of exactly 0, and further passes change no
    weight; XOR it never learns (at most 3 corners of 4)."""
    words = ("data=xor", f"data.function={function}", "data.samples=100", "data.noise=0.05", *PERCEPTRON)
    ends = []
    for epochs in (4, 5):
        trainer = make(*words, f"trainer.epochs={epochs}")
        trainer.fit()
        ends.append(trainer.run.model.head.weight.detach().clone())
    found = trainer.evaluate("train")
    if separable:
        assert (found["accuracy"], found["loss"]) == (1.0, 0.0)
        assert trainer.run.history["train"]["loss"] == 0.0
        assert torch.equal(*ends)
    else:
        assert found["accuracy"] <= 0.76


@pytest.mark.curriculum("O17", "L15")
def test_the_perceptron_rule_of_a_run(make) -> None:
    """Sample by sample: w <- w + γ d x where sign(<w, x> + b) is not d, nothing where it is."""
    trainer = make(
        "data=xor", "data.function=and", "data.samples=60", *PERCEPTRON, "optimizer.lr=0.5", "trainer.epochs=2"
    )
    w, b = trainer.run.model.head.weight.detach()[0].clone(), trainer.run.model.head.bias.detach()[0].clone()
    mistakes = 0
    for epoch in range(2):
        for batch in trainer.run.data.epoch(epoch):
            x, d = batch.inputs[0], batch.targets[0, 0]
            if d * (w @ x + b) < 0:
                w, b, mistakes = w + 0.5 * d * x, b + 0.5 * d, mistakes + 1
    trainer.fit()
    assert 2 < mistakes < trainer.run.step
    torch.testing.assert_close(trainer.run.model.head.weight.detach()[0], w)
    torch.testing.assert_close(trainer.run.model.head.bias.detach()[0], b)


# ---- mean or sum ------------------------------------------------------------------------------------------------------------

NET = (
    "data=digits",
    "data.limit_train=96",
    "model=mlp",
    "model.hidden=[8]",
    "model.dropout=0",
    "optimizer=sgd",
    "trainer.epochs=2",
)


@pytest.mark.curriculum("L21")
@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_the_sum_is_the_mean_with_another_rate(make, accumulate: str) -> None:
    """With minibatches of 32, the sum trains like the mean with a learning rate 32 times as large and a 32nd of the penalty;
    loss, penalty and objective are reported per sample."""
    sums = make(*NET, "data.batch_size=32", "loss.reduction=sum", "optimizer.lr=0.01", f"trainer.accumulate={accumulate}",
                "regularization=l2", "regularization.l2.strength=0.32")  # fmt: skip
    means = make(
        *NET, "data.batch_size=32", "optimizer.lr=0.32", "regularization=l2", "regularization.l2.strength=0.01"
    )
    for trainer in (sums, means):
        trainer.fit()
    for a, b in zip(sums.trainable, means.trainable, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for name in ("loss", "penalty", "objective"):
        assert sums.run.history["train"][name] == pytest.approx(means.run.history["train"][name], rel=1e-4)
    assert sums.run.history["val"]["loss"] == pytest.approx(means.run.history["val"]["loss"], rel=1e-4)


@pytest.mark.curriculum("L21")
def test_with_the_mean_the_rate_does_not_depend_on_the_batch(make) -> None:
    """Averaged over an epoch, the first update is as large for minibatches of 12 as for 96 samples with the mean, and an eighth
    with the sum."""
    size = {}
    for reduction in ("mean", "sum"):
        for batch_size in (12, 96):
            trainer = make(*NET, f"data.batch_size={batch_size}", f"loss.reduction={reduction}")
            gradients = []
            for batch in trainer.run.data.epoch(0):
                for parameter in trainer.trainable:
                    parameter.grad = None
                trainer._forward_backward(batch, 0, 1.0)
                gradients.append(torch.cat([p.grad.flatten() for p in trainer.trainable]))
            size[reduction, batch_size] = torch.stack(gradients).mean(0)
    torch.testing.assert_close(size["mean", 12], size["mean", 96], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(8 * size["sum", 12], size["sum", 96], atol=1e-4, rtol=1e-5)


@pytest.mark.curriculum("L21")
@pytest.mark.parametrize(
    "words",
    [("loss=ce",), ("loss=hinge",), ("loss=auto", "+loss.label_smoothing=0.1"), ("regularization=[label_smoothing]",)],
)
def test_every_loss_has_a_reduction(cli, tmp_path: Path, words: tuple[str, ...]) -> None:
    """The command line takes it for all losses; the loss of untrained weights is reported alike."""
    losses = []
    for reduction in ("mean", "sum"):
        done = cli("data=digits", "model=linear", *words, f"loss.reduction={reduction}", "optimizer.lr=1e-20",
                   "trainer.steps=1", "device=cpu", "callbacks=none", f"hydra.run.dir={reduction}")  # fmt: skip
        assert done.rc == 0, done.stderr
        results = json.loads((tmp_path / reduction / "results.json").read_text())
        losses.append((results["metrics"]["train"]["loss"], results["metrics"]["val"]["loss"]))
    assert losses[0] == losses[1]


def test_a_wrong_reduction_is_refused(cli) -> None:
    """In one line that names the nearest."""
    done = cli("loss.reduction=summ", "device=cpu")
    assert done.rc == 1
    assert "loss.reduction: got 'summ'" in done.stderr
    assert "did you mean 'sum'" in done.stderr
