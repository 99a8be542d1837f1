"""Exact solutions as an optimizer: least squares, ridge regression, Gaussian classes; and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

from dlrun import checkpoint, rundir
from dlrun.build import build_trainer, check
from dlrun.data.affine import Affine
from dlrun.data.gaussians import Gaussians
from dlrun.losses._base import original_units
from dlrun.models import MODELS
from dlrun.registry import ConfigError
from dlrun.trainer import Trainer

BASE = ("device=cpu", "callbacks=none")
EXACT = ("optimizer=closed_form", "model=linear")
DESCENT = (
    "model=linear",
    "optimizer=sgd",
    "scheduler=constant",
    "data.batch_size=100000",
)  # larger than any set: full batch


@pytest.fixture
def trained(composed: Callable[..., dict], tmp_path: Path) -> Callable[..., Trainer]:
    """A composed configuration, checked, built and fitted: `trained("data=affine", "optimizer=closed_form")`."""
    folders = iter(range(100))

    def train(*overrides: str) -> Trainer:
        config = composed(*BASE, *overrides)
        check(config)
        folder = tmp_path / f"trained{next(folders)}"
        folder.mkdir()
        trainer = build_trainer(config, folder)
        trainer.fit()
        return trainer

    return train


def training_set(trainer: Trainer) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as the network sees them, float64."""
    batches = list(trainer.run.data.split("train"))
    return tuple(torch.cat([b[i] for b in batches]).flatten(1).double().numpy() for i in (0, 1))  # type: ignore[return-value]


def parameters(trainer: Trainer) -> np.ndarray:
    """(outputs, inputs + 1): weights and bias, float64."""
    head = trainer.run.model.head
    return torch.cat([head.weight, head.bias[:, None]], 1).detach().double().numpy()


def with_ones(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], 1)


def test_the_gradient_is_0_at_the_solution_of_a_sum(trained) -> None:
    """Ridge with `loss.reduction=sum`: the penalty counts once for all samples, in the solution and in the gradient."""
    words = ("regularization=[l2]", "regularization.l2.strength=0.5", "data.batch_size=7", "loss.reduction=sum")
    trainer = trained(*EXACT, "data=affine", "data.noise=0.5", "trainer.min_grad_norm=1e-12", *words)
    assert trainer.run.history["train"]["full_gradient_norm"] < 1e-6


@pytest.mark.curriculum("O18", "M01")
def test_least_squares(trained) -> None:
    """W^+ y of NumPy, for two targets at once, with noise and inputs whose mean is not 0; the gradient there is 0."""
    words = ("data=affine", "data.noise=0.5", "data.normalize=unit", "trainer.log_every_steps=1")
    trainer = trained(*EXACT, *words, "trainer.min_grad_norm=1e-12")
    x, y = training_set(trainer)
    expected = np.linalg.lstsq(with_ones(x), y, rcond=None)[0].T
    assert (np.abs(expected[:, -1]) > 1e-3).all()  # biases
    np.testing.assert_allclose(parameters(trainer), expected, atol=1e-6)
    assert trainer.run.history["train"]["loss"] == pytest.approx(
        float(((with_ones(x) @ expected.T - y) ** 2).sum(1).mean()), rel=1e-5
    )
    assert trainer.run.history["train"]["full_gradient_norm"] < 1e-6
    assert (trainer.run.step, trainer.run.epoch) == (1, 1)  # though trainer.epochs is 10


@pytest.mark.curriculum("O18", "M01", "T05")
def test_gradient_descent_reaches_the_same_optimum(trained) -> None:
    """Affine data with and without noise: full-batch gradient descent ends within 1e-4 of the exact solution."""
    for noise in ("0.0", "0.5"):
        data = ("data=affine", f"data.noise={noise}", "data.samples=300")
        exact = trained(*EXACT, *data)
        descent = trained(*DESCENT, *data, "optimizer.lr=0.3", "trainer.epochs=40", "trainer.validate_every_epochs=40")
        np.testing.assert_allclose(parameters(descent), parameters(exact), atol=1e-4)


@pytest.mark.curriculum("O18", "T05", "M01")
def test_affine_data_without_noise_give_their_weights_back(trained) -> None:
    """The map from inputs to targets, both in original units, is A x + b to 1e-5."""
    trainer = trained(*EXACT, "data=affine")
    a, b = Affine(0).weights()
    raw = torch.cat([torch.zeros(1, 3), torch.eye(3)])
    found = predicted(trainer, raw)
    torch.testing.assert_close(found[0], b, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1:] - found[0], a.T, atol=1e-5, rtol=0)


def predicted(trainer: Trainer, raw: torch.Tensor) -> torch.Tensor:
    """The targets of raw inputs, in original units, float64."""
    run = trainer.run
    with torch.no_grad():
        outputs = run.model.double()(run.data.transform(raw).double())
    run.model.float()
    return original_units(run.loss.predict(outputs), run.loss.target)


@pytest.mark.curriculum("M02", "D15", "T25", "O18")
def test_polynomial_regression_recovers_an_exact_quadratic(trained) -> None:
    """Degree-2 lifting and least squares give the coefficients 1, -2, 3 of the noiseless data to 1e-6; degree 1 cannot."""
    lifted = "data.transform={polynomial: {degree: 2, include_constant: false}}"
    trainer = trained(*EXACT, "data=poly1d", "data.noise=0", lifted)
    x = torch.tensor([[-1.0], [0.0], [1.0]])
    left, middle, right = predicted(trainer, x).flatten().tolist()
    coefficients = [middle, (right - left) / 2, (right + left) / 2 - middle]
    assert coefficients == pytest.approx([1.0, -2.0, 3.0], abs=1e-6)
    assert trainer.evaluate("val")["rmse"] < 1e-5
    assert trained(*EXACT, "data=poly1d", "data.noise=0").evaluate("val")["rmse"] > 0.5


@pytest.mark.curriculum("M02", "D15")
@pytest.mark.parametrize(("features", "degree", "count"), [(2, 2, 6), (3, 3, 20)])
def test_parameters_of_polynomial_regression(trained, features: int, degree: int, count: int) -> None:
    """N C(D + K, K) parameters, the constants among them: for two targets, twice 6 and twice 20."""
    lifted = f"data.transform={{polynomial: {{degree: {degree}}}}}"
    trainer = trained(
        *EXACT, "data=affine", f"data.features={features}", lifted, "model.bias=false", "data.normalize=unit"
    )
    assert sum(p.numel() for p in trainer.run.model.parameters()) == 2 * count


@pytest.mark.parametrize(
    ("words", "alpha_per_sample"),
    [
        (("regularization=l2", "regularization.l2.strength=0.3"), 0.3),
        (("optimizer.weight_decay=0.6",), 0.3),
    ],
)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ridge_regression(trained, words: tuple[str, ...], alpha_per_sample: float, reduction: str) -> None:
    """With the L2 penalty on the weights alone it is scikit-learn's Ridge, for the mean and for the sum of the losses."""
    trainer = trained(*EXACT, "data=affine", "data.noise=1", "data.samples=50", *words, f"loss.reduction={reduction}")
    x, y = training_set(trainer)
    alpha = alpha_per_sample * (len(x) if reduction == "mean" else 1)
    reference = Ridge(alpha=alpha, solver="svd").fit(x, y)
    expected = np.concatenate([reference.coef_, reference.intercept_[:, None]], 1)
    np.testing.assert_allclose(parameters(trainer), expected, atol=2e-6)


def test_without_a_unique_solution_the_smallest_is_taken(trained) -> None:
    """Fewer samples than features: the pseudo-inverse's solution, which fits exactly."""
    trainer = trained(*EXACT, "data=affine", "data.features=30", "data.limit_train=10", "data.normalize=unit")
    x, y = training_set(trainer)
    assert x.shape == (10, 30)
    np.testing.assert_allclose(parameters(trainer), (np.linalg.pinv(with_ones(x)) @ y).T, atol=1e-5)
    assert trainer.run.history["train"]["loss"] < 1e-9


@pytest.mark.parametrize("sampling", ["disjoint", "with_replacement"])
def test_limited_batches_hold_the_samples_that_other_optimizers_see(
    trained, monkeypatch: pytest.MonkeyPatch, sampling: str
) -> None:
    """With trainer.limit_train_batches=3 it solves on the first three minibatches of the first epoch, not on the first rows of
    the source; fast_dev_run is such a limit, too."""
    original, seen = Trainer._gradients_of, []

    def noted(self: Trainer, batch: Any) -> Any:
        seen.append(batch)
        return original(self, batch)

    monkeypatch.setattr(Trainer, "_gradients_of", noted)
    data = ("data=affine", "data.noise=1", "data.samples=200", "data.batch_size=16", f"data.sampling={sampling}")
    for limit, count in (("trainer.limit_train_batches=3", 3), ("trainer.fast_dev_run=true", 2)):
        trained(*data, "model=linear", "optimizer=sgd", "trainer.epochs=1", limit)
        expected, seen = torch.cat([batch.indices for batch in seen]), []
        assert (len(expected), sorted(expected.tolist()) != list(range(16 * count))) == (16 * count, True)
        exact = trained(*EXACT, *data, limit)
        (batch,), seen = seen, []
        assert batch.indices.tolist() == expected.tolist()
        assert exact.run.samples == 16 * count
        x, y = batch.inputs.double().numpy(), batch.targets.double().numpy()
        np.testing.assert_allclose(parameters(exact), np.linalg.lstsq(with_ones(x), y, rcond=None)[0].T, atol=1e-5)


def test_without_bias(trained) -> None:
    """model.bias=false solves for the weights alone."""
    trainer = trained(*EXACT, "data=affine", "data.normalize=unit", "model.bias=false")
    x, y = training_set(trainer)
    expected = np.linalg.lstsq(x, y, rcond=None)[0].T
    np.testing.assert_allclose(trainer.run.model.head.weight.detach().double().numpy(), expected, atol=1e-5)


def in_original_units(trainer: Trainer) -> tuple[np.ndarray, float]:
    """Weights and bias of a single logit as a function of raw inputs."""
    found = parameters(trainer)[0]
    mean, std = np.array(trainer.run.spec.mean), np.array(trainer.run.spec.std)
    return found[:-1] / std, float(found[-1] - (found[:-1] * mean / std).sum())


@pytest.mark.curriculum("M07", "T02")
@pytest.mark.parametrize("prior", ["0.5", "0.2"])
def test_gaussian_classes_have_a_logistic_posterior(trained, prior: str) -> None:
    """Both the estimated Gaussians and a logistic fit find w = Σ^-1 (μ1 - μ0) and b within sampling error, and the Bayes
    accuracy to 1 %."""
    data = ("data=gaussians", f"data.prior={prior}", "data.samples=20000")
    closed = trained(*data, "model=gaussian_classifier", "optimizer=closed_form")
    logistic = trained(
        *data,
        *DESCENT,
        "optimizer=nesterov",
        "optimizer.lr=1.0",
        "trainer.epochs=50",
        "trainer.validate_every_epochs=50",
    )
    truth = Gaussians(0, samples=4, prior=float(prior))
    w, b = truth.weights()
    for trainer in (closed, logistic):
        weights, bias = in_original_units(trainer)
        np.testing.assert_allclose(weights, w.numpy(), atol=0.15)  # 4 standard errors of 14,400 samples
        assert bias == pytest.approx(b, abs=0.15)
        assert trainer.test()["accuracy"] == pytest.approx(truth.bayes_accuracy(), abs=0.01)


@pytest.mark.curriculum("M07")
def test_several_gaussian_classes_are_linear_discriminant_analysis(trained) -> None:
    """Posteriors equal those of scikit-learn's LinearDiscriminantAnalysis on the same samples."""
    trainer = trained(
        "data=blobs", "data.std=2.0", "data.samples=400", "model=gaussian_classifier", "optimizer=closed_form"
    )
    batches = list(trainer.run.data.split("train"))
    x, y = (torch.cat([b[i] for b in batches]).numpy() for i in (0, 1))
    reference = LinearDiscriminantAnalysis(solver="lsqr").fit(x.astype("float64"), y)
    with torch.no_grad():
        found = torch.softmax(trainer.run.model(torch.from_numpy(x)), 1).numpy()
    np.testing.assert_allclose(found, reference.predict_proba(x), atol=1e-5)


def test_two_outputs_and_one_agree(trained) -> None:
    """Cross-entropy with two outputs and binary cross-entropy with one give the same probabilities, signs included."""
    found = []
    for words in (("loss=ce",), ("loss=bce",), ("loss=bce", "data.labels=sign")):
        trainer = trained(
            "data=gaussians", "data.samples=500", *words, "model=gaussian_classifier", "optimizer=closed_form"
        )
        with torch.no_grad():
            outputs = trainer.run.model(next(iter(trainer.run.data.split("val"))).inputs)
        found.append(trainer.run.loss.probabilities(outputs))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[1], found[2])


def test_a_class_without_samples_is_refused() -> None:
    """A Gaussian needs samples."""
    model = MODELS.build({"name": "gaussian_classifier"}, input_shape=(2,), num_outputs=3)
    with pytest.raises(ConfigError, match="no training sample of class 1,"):
        model.solve(torch.randn(4, 2), torch.tensor([0, 2, 0, 2]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("model=mlp",), "closed_form needs a model with `solve`, MLP has none; these have: gaussian_classifier, linear"),
        (("loss=gaussian_nll",), "optimizer.name: closed_form fits Linear by loss=l2 only, not by gaussian_nll"),
        (("regularization=l1",), "regularization.l1: cannot be combined with optimizer=closed_form"),
        (("regularization=proximal_l1",), "regularization.proximal_l1: cannot be combined"),
        (("regularization=non_negative",), "regularization.non_negative: cannot be combined"),
        (("data.augmentation={noise: {}}",), "data.augmentation: cannot be combined"),
        (("trainer.clip_norm=1",), "trainer.clip_norm: cannot be combined"),
        (("trainer.ema_decay=0.9",), "trainer.ema_decay, trainer.swa_start: cannot be combined"),
        (("trainer.precision=bf16",), "trainer.precision=bf16: cannot be combined"),
        (("data=gaussians", "model=gaussian_classifier", "regularization=l2"), "solves gaussian_classifier without penalties"),
        (("data=gaussians",), "closed_form fits Linear by loss=l2 only, not by bce"),
    ],
)  # fmt: skip
def test_refusals(cli, words: tuple[str, ...], message: str) -> None:
    """What the solution cannot take into account is refused in one line, without a run left behind."""
    done = cli("data=poly1d", *EXACT, *BASE, *words, "hydra.run.dir=run")
    assert done.rc == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_command(cli, tmp_path: Path) -> None:
    """A run like any other: results, metrics, checkpoints; finished once, there is nothing to resume."""
    assert cli(*EXACT, "data=poly1d", "device=cpu", "callbacks=[metrics_file]", "hydra.run.dir=run").rc == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["status"] == "finished"
    assert results["best"]["step"] == 1
    assert set(results["metrics"]) == {"train", "val", "test"}
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    assert cli("resume=run").rc == 0
    assert cli("action=test", "run=run").rc == 0


@pytest.mark.parametrize("loader", ["resident", "streaming"])
def test_stopped_before_the_validation_it_ends_the_same(composed, tmp_path: Path, loader: str) -> None:
    """A run killed right after its update and resumed has the weights and metrics of one never stopped."""
    config = composed(
        *BASE, *EXACT, "data=affine", "trainer.checkpoint_every_steps=1", f"data.loader={loader}", "data.workers=0"
    )

    def make(folder: str) -> Trainer:
        (tmp_path / folder).mkdir(exist_ok=True)
        return build_trainer(config, tmp_path / folder)

    whole, stopped = make("whole"), make("stopped")
    whole.fit()

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    stopped.evaluate = killed  # type: ignore[method-assign, assignment]
    with pytest.raises(KeyboardInterrupt):
        stopped.fit()
    resumed = make("stopped")
    resumed.load_state_dict(checkpoint.load(resumed.run.folder / rundir.LAST))
    assert (resumed.run.step, resumed.run.epoch) == (1, 0)
    resumed.fit()
    assert np.array_equal(parameters(whole), parameters(resumed))
    assert whole.run.history == resumed.run.history
