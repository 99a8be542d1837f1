"""Metrics against scikit-learn, plain loops and hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch.distributions import Normal

from dlrun.losses import DEFAULT_LOSS
from dlrun.losses._build import build_loss
from dlrun.metrics import METRICS
from dlrun.metrics._collection import MetricCollection, direction
from dlrun.metrics._counts import class_indices, confusion_matrix
from dlrun.registry import ConfigError
from dlrun.spec import CLASS_KINDS, REAL_KINDS, TargetSpec

N = 500


def evaluate(loss_name, target, outputs, targets, batch=77):
    """The metrics of outputs given in batches."""
    collection = MetricCollection(build_loss({"name": loss_name}, target), target)
    for i in range(0, len(targets), batch):
        collection.update(outputs[i : i + batch], targets[i : i + batch])
    return collection.compute()


@pytest.fixture
def classes():
    """Outputs of a middling classifier of 8 classes, one of which never occurs, with tied outputs."""
    torch.manual_seed(0)
    targets = torch.randint(7, (N,))
    outputs = (torch.randn(N, 8) + 1.5 * torch.nn.functional.one_hot(targets, 8)).mul(4).round().div(4)
    return outputs, targets


@pytest.mark.curriculum("L19", "L20", "T28")
def test_class_metrics(classes):
    """Accuracy, top-5 and macro F1 of classes equal scikit-learn's; top-5 is at least accuracy."""
    outputs, targets = classes
    outputs[:, 7] = -50  # neither present nor predicted: left out of F1, as by scikit-learn
    values = evaluate("ce", TargetSpec("class", 8), outputs, targets)
    wanted, guess = targets.numpy(), outputs.argmax(1).numpy()
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(wanted, guess))
    assert values["f1"] == pytest.approx(reference.f1_score(wanted, guess, average="macro"))
    smooth = outputs + 1e-3 * torch.randn_like(outputs)  # top-k of tied scores is a matter of taste
    top5 = evaluate("ce", TargetSpec("class", 8), smooth, targets)["top5"]
    expected = reference.top_k_accuracy_score(wanted, smooth.numpy(), k=5, labels=range(8))
    assert top5 == pytest.approx(expected)
    assert 1 > top5 >= values["accuracy"]
    assert set(values) == {"accuracy", "top5", "f1", "auroc", "ece"}


def test_auroc_of_classes_is_one_against_the_rest(classes):
    """The mean over the classes that occur of scikit-learn's AUROC, ties included."""
    outputs, targets = classes
    value = evaluate("ce", TargetSpec("class", 8), outputs, targets)["auroc"]
    scores = torch.softmax(outputs, 1).numpy()
    areas = [reference.roc_auc_score(targets.numpy() == k, scores[:, k]) for k in range(7)]
    assert value == pytest.approx(np.mean(areas), abs=1e-9)


@pytest.mark.curriculum("L20")
def test_top5_of_five_classes_is_one(classes):
    """With five classes every class is among the five best, and the collection does not report it."""
    target = TargetSpec("class", 5)
    loss = build_loss({"name": "ce"}, target)
    metric = METRICS.get("top5")(loss, target)
    metric.update(torch.randn(20, 5), torch.randint(5, (20,)))
    assert metric.compute() == 1.0
    assert "top5" not in MetricCollection(loss, target).names


@pytest.mark.parametrize(("kind", "loss"), [("binary", "bce"), ("sign", "bce"), ("binary", "ce"), ("sign", "hinge")])
def test_two_class_metrics(kind, loss):
    """Accuracy, F1 of the positive class and AUROC equal scikit-learn's for every way of writing two classes."""
    torch.manual_seed(1)
    labels = (torch.rand(N) > 0.7).long()
    score = (torch.randn(N) + labels).mul(8).round().div(8)
    outputs = torch.stack([torch.zeros(N), score], 1) if loss == "ce" else score[:, None]
    targets = (labels if kind == "binary" else 2 * labels - 1).float()[:, None]
    values = evaluate(loss, TargetSpec(kind, 1), outputs, targets)
    wanted, guess = labels.numpy(), (score >= 0).long().numpy()
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(wanted, guess))
    assert values["f1"] == pytest.approx(reference.f1_score(wanted, guess))
    assert values["auroc"] == pytest.approx(reference.roc_auc_score(wanted, score.numpy()))
    assert ("ece" in values) == (loss != "hinge")


@pytest.mark.curriculum("T06")
def test_multi_label_metrics():
    """Accuracy is the share of exact matches, F1 and AUROC are means over the labels, as in scikit-learn."""
    torch.manual_seed(2)
    targets = (torch.rand(N, 5) > 0.6).float()
    outputs = torch.randn(N, 5) + 2 * targets - 0.5
    values = evaluate("bce", TargetSpec("multi_hot", 5), outputs, targets)
    wanted, guess = targets.numpy(), (outputs >= 0).numpy()
    assert values["accuracy"] == pytest.approx(reference.accuracy_score(wanted, guess))
    assert values["f1"] == pytest.approx(reference.f1_score(wanted, guess, average="macro"))
    assert values["auroc"] == pytest.approx(reference.roc_auc_score(wanted, outputs.numpy(), average="macro"))
    assert set(values) == {"accuracy", "f1", "auroc"}


def test_ece_by_hand():
    """Three samples at confidence 0.8 (two right) and one at 0.6 (wrong): (3 |2/3 - 0.8| + |0 - 0.6|) / 4 = 0.25."""
    p = torch.tensor([0.8, 0.8, 0.2, 0.4])  # of the positive class; the last two are predicted negative
    targets = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    values = evaluate("bce", TargetSpec("binary", 1), torch.logit(p)[:, None], targets, batch=2)
    assert values["ece"] == pytest.approx(0.25, abs=1e-6)


def test_ece_equals_a_loop_over_the_bins(classes):
    """Equals the definition written as a loop over 15 bins open on the left, for classes."""
    outputs, targets = classes
    probabilities = torch.softmax(outputs, 1)
    confidence, guess = probabilities.max(1)
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            gap = (guess == targets)[inside].double().mean() - confidence[inside].double().mean()
            total += inside.double().mean().item() * abs(gap.item())
    assert evaluate("ce", TargetSpec("class", 8), outputs, targets)["ece"] == pytest.approx(total, abs=1e-7)


def test_undefined_metrics_are_left_out():
    """AUROC needs both classes, R² needs targets that differ, and nothing is defined without samples."""
    binary, real = TargetSpec("binary", 1), TargetSpec("real", 1)
    values = evaluate("bce", binary, torch.tensor([[-1.0], [-2.0]]), torch.zeros(2, 1))
    assert set(values) == {"accuracy", "ece"}
    assert "r2" not in evaluate("l2", real, torch.randn(9, 1), torch.full((9, 1), 0.1))
    for kind, name in DEFAULT_LOSS.items():
        target = TargetSpec(kind, 1 if kind in ("binary", "sign") else 3)
        assert MetricCollection(build_loss({"name": name}, target), target).compute() == {}


@pytest.mark.parametrize("standardised", [True, False])
def test_regression_metrics_in_original_units(standardised):
    """RMSE, MAE and R² of standardised targets equal scikit-learn's on the values before standardisation."""
    rng = np.random.default_rng(0)
    mean, std = (np.array([1000.0, -3.0]), np.array([5.0, 0.2])) if standardised else (np.zeros(2), np.ones(2))
    target = TargetSpec("real", 2, mean=tuple(mean), std=tuple(std)) if standardised else TargetSpec("real", 2)
    targets = rng.normal(size=(N, 2))
    guess = targets + rng.normal(scale=0.3, size=(N, 2))
    values = evaluate("l2", target, torch.tensor(guess).float(), torch.tensor(targets).float())
    wanted, got = targets * std + mean, guess * std + mean
    assert values["rmse"] == pytest.approx(reference.root_mean_squared_error(wanted, got), rel=1e-6)
    assert values["mae"] == pytest.approx(reference.mean_absolute_error(wanted, got), rel=1e-6)
    assert values["r2"] == pytest.approx(reference.r2_score(wanted, got), rel=1e-6)


def test_r2_keeps_its_digits_far_from_zero():
    """Targets around 10,000 with unit spread, one dimension constant: R² of the other is scikit-learn's."""
    rng = np.random.default_rng(1)
    targets = np.stack([10_000 + rng.normal(size=N), np.full(N, 0.1)], 1)
    guess = targets + rng.normal(scale=0.5, size=(N, 2))
    values = evaluate("l2", TargetSpec("real", 2), torch.tensor(guess), torch.tensor(targets))
    assert values["r2"] == pytest.approx(reference.r2_score(targets[:, 0], guess[:, 0]), rel=1e-9)


@pytest.mark.curriculum("L01")
def test_nll_in_original_units():
    """The NLL of a Gaussian fitted to standardised targets is that of the rescaled Gaussian at the original targets."""
    torch.manual_seed(3)
    mean, std = torch.tensor([50.0, -2.0]), torch.tensor([7.0, 0.1])
    target = TargetSpec("real", 2, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    outputs, targets = torch.randn(N, 4), torch.randn(N, 2)
    loss = build_loss({"name": "gaussian_nll"}, target)
    values = evaluate("gaussian_nll", target, outputs, targets)
    original = Normal(loss.predict(outputs) * std + mean, loss.std(outputs) * std)
    expected = -original.log_prob(targets * std + mean).sum(1).mean().item()
    assert values["nll"] == pytest.approx(expected, rel=1e-5)


def test_nll_of_l2_and_of_waiting_times():
    """`l2` is a Gaussian of variance 1/2; the exponential NLL is its own loss; hinge losses have none."""
    values = evaluate("l2", TargetSpec("real", 1), torch.zeros(3, 1), torch.ones(3, 1))
    assert values["nll"] == pytest.approx(1 + 0.5 * math.log(math.pi), rel=1e-6)
    waits = evaluate(
        "exponential_nll", TargetSpec("non_negative", 1), torch.full((1, 1), math.log(2)), torch.full((1, 1), 1.5)
    )
    assert waits["nll"] == pytest.approx(2.306853, abs=1e-6)
    assert waits["mae"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("loss", ["l2", "bce"])
def test_squared_error_of_images(loss):
    """Summed over the pixels, averaged over the images, on predicted pixels whatever the loss."""
    pixels, guess = torch.rand(60, 16), torch.rand(60, 16).clamp(0.01, 0.99)
    outputs = guess if loss == "l2" else torch.logit(guess)
    values = evaluate(loss, TargetSpec("unit", 16), outputs, pixels, batch=7)
    expected = 16 * reference.mean_squared_error(pixels.numpy(), guess.numpy())
    assert values == {"squared_error": pytest.approx(expected, rel=1e-5)}


@pytest.mark.parametrize("kind", sorted(CLASS_KINDS | REAL_KINDS))
def test_every_kind_has_metrics(kind):
    """Every kind of target has finite metrics under its default loss, whatever the batches, without the loss."""
    torch.manual_seed(4)
    size = 1 if kind in ("binary", "sign") else 6
    target = TargetSpec(kind, size)
    targets = {
        "class": torch.randint(size, (N,)),
        "sign": 2.0 * (torch.rand(N, size) > 0.5) - 1,
        "real": torch.randn(N, size),
    }.get(kind, (torch.rand(N, size) > 0.5).float())
    outputs = torch.randn(N, build_loss({"name": "auto"}, target).num_outputs)
    values = evaluate("auto", target, outputs, targets)
    assert values
    assert all(math.isfinite(v) and isinstance(v, float) for v in values.values())
    assert evaluate("auto", target, outputs, targets, batch=N) == pytest.approx(values)
    assert "loss" not in values


def test_results_do_not_depend_on_the_buffer(monkeypatch, classes):
    """Metrics that see every batch at once equal metrics that see them one by one, and half precision is taken."""
    outputs, targets = classes
    target = TargetSpec("class", 8)
    whole = evaluate("ce", target, outputs, targets)
    monkeypatch.setattr("dlrun.metrics._collection._BUFFER", 1)
    assert evaluate("ce", target, outputs, targets) == pytest.approx(whole)
    assert evaluate("ce", target, outputs.bfloat16(), targets)["accuracy"] == whole["accuracy"]


def test_direction():
    """Losses and errors are minimised, scores maximised, and a misspelt monitor is refused with the nearest name."""
    down = {"loss", "ece", "rmse", "mae", "nll", "squared_error"}
    assert {name for name in ["loss", *METRICS.names()] if direction(name) == "min"} == down
    assert direction("val/accuracy") == "max"
    with pytest.raises(ConfigError, match=r"trainer\.monitor: unknown metric 'acuracy'.*did you mean 'accuracy'"):
        direction("val/acuracy")
    for name in METRICS.names():
        assert METRICS.get(name).name == name


def test_confusion_matrix():
    """Rows are true and columns predicted classes, as in scikit-learn; signs count as classes 0 and 1."""
    rng = np.random.default_rng(0)
    wanted, guess = rng.integers(5, size=N), rng.integers(5, size=N)
    matrix = confusion_matrix(torch.tensor(guess), torch.tensor(wanted), 5)
    assert np.array_equal(matrix.numpy(), reference.confusion_matrix(wanted, guess))
    assert class_indices(torch.tensor([[-1.0], [1.0]]), "sign").tolist() == [0, 1]


@pytest.mark.cuda
def test_metrics_on_cuda(classes):
    """The metrics on the GPU equal those on the CPU, and `update` does not synchronise."""
    outputs, targets = classes
    expected = evaluate("ce", TargetSpec("class", 8), outputs, targets)
    target = TargetSpec("class", 8)
    collection = MetricCollection(build_loss({"name": "ce"}, target), target)
    outputs, targets = outputs.cuda(), targets.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        collection.update(outputs, targets)
        collection._flush()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert collection.compute() == pytest.approx(expected, abs=1e-6)
