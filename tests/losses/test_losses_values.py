"""Losses against hand-computed numbers, PyTorch, scikit-learn and the distributions they declare."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import hinge_loss
from torch.nn import functional as F

from dlrun.losses import LOSSES
from dlrun.losses._build import build_loss, fitting
from dlrun.models import MODELS
from dlrun.spec import TargetSpec

KINDS = ("class", "binary", "sign", "multi_hot", "real", "non_negative", "unit")


def spec(kind, size=1):
    return TargetSpec(kind, size)


def loss_of(name, kind, size=1, **settings):
    return build_loss({"name": name, **settings}, spec(kind, size))


def example(kind, size, count=64, dtype=torch.float64):
    """Random targets of a kind."""
    torch.manual_seed(0)
    uniform = torch.rand(count, size, dtype=dtype)
    return {
        "class": torch.randint(size, (count,)),
        "binary": (uniform > 0.4).to(dtype),
        "sign": 2 * (uniform > 0.4).to(dtype) - 1,
        "multi_hot": (uniform > 0.4).to(dtype),
        "real": torch.randn(count, size, dtype=dtype),
        "non_negative": -uniform.log(),
        "unit": uniform,
    }[kind]


def size_of(kind):
    return 1 if kind in ("binary", "sign") else 6


LIKELIHOODS = [  # name, kind, settings, the documented constant per dimension: -log_prob - loss
    ("l2", "real", {}, 0.5 * math.log(math.pi)),
    ("l2", "non_negative", {}, 0.5 * math.log(math.pi)),
    ("l2", "unit", {}, 0.5 * math.log(math.pi)),
    ("bce", "binary", {}, 0.0),
    ("bce", "sign", {}, 0.0),
    ("bce", "multi_hot", {}, 0.0),
    ("ce", "class", {}, 0.0),
    ("ce", "binary", {}, 0.0),
    ("gaussian_nll", "real", {}, 0.0),
    ("gaussian_nll", "real", {"variance": "isotropic"}, 0.0),
    ("gaussian_nll", "non_negative", {}, 0.0),
    ("gaussian_full_nll", "real", {}, 0.0),
    ("exponential_nll", "non_negative", {}, 0.0),
    ("exponential_nll", "non_negative", {"rate": "softplus"}, 0.0),
]


@pytest.mark.curriculum("L01", "L02", "L05")
@pytest.mark.parametrize(("name", "kind", "settings", "constant"), LIKELIHOODS)
def test_loss_is_negative_log_probability(name, kind, settings, constant):
    """A likelihood equals -log_prob of the distribution it declares, up to its documented constant."""
    size = size_of(kind)
    loss, targets = loss_of(name, kind, size, **settings), example(kind, size)
    outputs = torch.randn(64, loss.num_outputs, dtype=torch.float64)
    expected = -loss.distribution(outputs).log_prob(targets) - constant * size
    torch.testing.assert_close(loss.per_sample(outputs, targets), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.curriculum("L01")
def test_every_loss_declares_its_distribution_or_has_none():
    """Those that are compared with their distributions above are all but the margin losses, which declare none."""
    without = {"hinge", "perceptron"}
    assert {name for name, *_ in LIKELIHOODS} == {*LOSSES.names()} - without
    for name in without:
        loss = loss_of(name, "sign")
        assert loss.distribution(torch.zeros(1, loss.num_outputs)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_every_fitting_loss_has_the_promised_shapes_and_gradients(kind):
    """Value, decision, probabilities and gradient have the shapes that the kind of the target prescribes."""
    size = size_of(kind)
    targets = example(kind, size, dtype=torch.float32)
    for name in fitting(kind):
        loss = loss_of(name, kind, size)
        outputs = torch.randn(64, loss.num_outputs, requires_grad=True)
        assert loss.per_sample(outputs, targets).shape == (64,)
        torch.testing.assert_close(loss(outputs, targets), loss.per_sample(outputs, targets).mean())
        loss(outputs, targets).backward()
        assert outputs.grad.isfinite().all()
        assert outputs.grad.abs().sum() > 0
        decision, probabilities, std = (f(outputs.detach()) for f in (loss.predict, loss.probabilities, loss.std))
        assert decision.shape == ((64,) if kind == "class" else (64, size))
        if kind in ("binary", "sign", "multi_hot"):
            assert set(decision.unique().tolist()) == ({-1.0, 1.0} if kind == "sign" else {0.0, 1.0})
        if probabilities is not None:
            assert probabilities.shape == (64, size)
            assert ((probabilities > 0) & (probabilities < 1)).all()
        assert std is None or (std.shape == (64, size) and (std > 0).all())


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_outputs_are_computed_in_full(kind):
    """The value on bfloat16 outputs is that of the same outputs as float32."""
    size = size_of(kind)
    targets = example(kind, size, dtype=torch.float32)
    for name in fitting(kind):
        loss = loss_of(name, kind, size)
        outputs = torch.randn(64, loss.num_outputs).bfloat16()
        value = loss(outputs, targets)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, loss(outputs.float(), targets))


@pytest.mark.curriculum("L02")
def test_l2_value_and_gradient():
    """Two samples by hand: mean of the squared norms, gradient 2 (ŷ - y) / T."""
    outputs = torch.tensor([[1.0, 2.0], [0.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    value = loss_of("l2", "real", 2)(outputs, targets)
    value.backward()
    assert value.item() == pytest.approx((5 + 9) / 2)
    torch.testing.assert_close(outputs.grad, 2 * (outputs.detach() - targets) / 2)


@pytest.mark.curriculum("L05", "L02", "L04")
@pytest.mark.parametrize("variance", ["per_dimension", "isotropic"])
def test_a_unit_variance_leaves_half_the_squared_norm(variance):
    """With σ² = 1, NLL - |y - μ|² / 2 is (N / 2) log 2π for every sample: 1.837877 for two dimensions."""
    loss, targets = loss_of("gaussian_nll", "real", 2, variance=variance), example("real", 2)
    means, raw = torch.randn(64, 2, dtype=torch.float64), math.log(math.expm1(1.0 - 1e-6))
    outputs = torch.cat([means, torch.full((64, loss.num_outputs - 2), raw, dtype=torch.float64)], 1)
    rest = loss.per_sample(outputs, targets) - (means - targets).square().sum(1) / 2
    torch.testing.assert_close(rest, torch.full_like(rest, 1.837877), atol=1e-6, rtol=0)


@pytest.mark.curriculum("L03")
def test_l2_optimum_is_the_mean():
    """A constant fitted to targets +1 (share 0.7) and -1 ends at 0.4."""
    targets = torch.tensor([[1.0]] * 7 + [[-1.0]] * 3)
    constant = torch.zeros(1, 1, requires_grad=True)
    loss, optimizer = loss_of("l2", "real"), torch.optim.SGD([constant], lr=0.25)
    for _ in range(50):
        optimizer.zero_grad()
        loss(constant.expand(10, 1), targets).backward()
        optimizer.step()
    assert constant.item() == pytest.approx(0.4, abs=1e-6)


@pytest.mark.curriculum("L04", "T08")
@pytest.mark.parametrize("variance", ["per_dimension", "isotropic"])
def test_gaussian_nll_literal(variance):
    """N = 1, y - μ = 1, σ² = 4 gives 1.737086."""
    loss = loss_of("gaussian_nll", "real", 1, variance=variance)
    raw = math.log(math.expm1(4.0 - 1e-6))  # the inverse of softplus
    outputs, targets = torch.tensor([[2.0, raw]]), torch.tensor([[3.0]])
    assert loss(outputs, targets).item() == pytest.approx(1.737086, abs=1e-6)
    assert loss.std(outputs).item() == pytest.approx(2.0, abs=1e-6)


@pytest.mark.curriculum("L04")
@pytest.mark.parametrize(("variance", "columns"), [("per_dimension", 6), ("isotropic", 4)])
def test_gaussian_nll_equals_pytorch(variance, columns):
    """Equals torch.nn.GaussianNLLLoss(full=True) summed over the dimensions, also for a shared variance."""
    loss, targets = loss_of("gaussian_nll", "real", 3, variance=variance), example("real", 3)
    assert loss.num_outputs == columns
    outputs = torch.randn(64, columns, dtype=torch.float64)
    scale = F.softplus(outputs[:, 3:]) + 1e-6
    expected = F.gaussian_nll_loss(outputs[:, :3], targets, scale.expand(64, 3), full=True, reduction="none").sum(1)
    torch.testing.assert_close(loss.per_sample(outputs, targets), expected)


@pytest.mark.curriculum("L04")
def test_gaussian_nll_optimum_is_the_mean_squared_residual():
    """With the mean held at the truth, the fitted isotropic variance is the mean squared residual, and always > 0."""
    loss, residuals = loss_of("gaussian_nll", "real", 2, variance="isotropic"), 3 * example("real", 2)
    raw = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([raw], max_iter=100, tolerance_grad=1e-10, tolerance_change=1e-14)

    def outputs():
        return torch.cat([torch.zeros(64, 2, dtype=torch.float64), raw.expand(64, 1)], 1)

    def closure():
        optimizer.zero_grad()
        value = loss(outputs(), residuals)
        value.backward()
        return value

    for _ in range(5):
        optimizer.step(closure)
    fitted = loss.std(outputs().detach())[0, 0] ** 2
    assert fitted.item() == pytest.approx(residuals.square().mean().item(), rel=1e-5)
    assert loss(torch.tensor([[0.0, 0.0, -1000.0]]), torch.zeros(1, 2)).isfinite()


@pytest.mark.curriculum("L06", "T07")
@pytest.mark.parametrize(("rate", "raw"), [("exp", math.log(2)), ("softplus", math.log(math.expm1(2.0)))])
def test_exponential_nll_literal(rate, raw):
    """λ = 2, y = 1.5 gives 2.306853, twice as much in two dimensions; the prediction is the mean 1 / λ; λ > 0 always."""
    loss = loss_of("exponential_nll", "non_negative", 1, rate=rate)
    outputs = torch.tensor([[raw]])
    assert loss(outputs, torch.tensor([[1.5]])).item() == pytest.approx(2.306853, abs=2e-6)
    assert loss.predict(outputs).item() == pytest.approx(0.5, abs=1e-6)
    assert loss.std(outputs).item() == pytest.approx(0.5, abs=1e-6)
    two = loss_of("exponential_nll", "non_negative", 2, rate=rate)
    assert two(outputs.expand(1, 2), torch.full((1, 2), 1.5)).item() == pytest.approx(2 * 2.306853, abs=4e-6)
    assert loss.rate_of(torch.tensor([[-80.0]])).item() > 0
    assert loss(torch.tensor([[-1000.0]]), torch.ones(1, 1)).isfinite()  # where softplus underflows


@pytest.mark.curriculum("T07")
def test_exponential_nll_optimum():
    """A constant model fitted by gradient descent ends at λ = 1 / mean(y)."""
    targets, raw = torch.tensor([[0.5], [1.5], [4.0]]), torch.zeros(1, 1, requires_grad=True)
    loss, optimizer = loss_of("exponential_nll", "non_negative"), torch.optim.SGD([raw], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        loss(raw.expand(3, 1), targets).backward()
        optimizer.step()
    assert raw.exp().item() == pytest.approx(0.5, abs=1e-5)


@pytest.mark.curriculum("L07", "L08", "T02")
def test_bce_literal_and_stability():
    """p = 0.8, y = 1 gives 0.223144; the form on logits equals the form on probabilities and is finite at ±1000."""
    loss = loss_of("bce", "binary")
    assert loss(torch.tensor([[math.log(4.0)]]), torch.ones(1, 1)).item() == pytest.approx(0.223144, abs=1e-6)
    outputs, targets = torch.randn(64, 1, dtype=torch.float64), example("binary", 1)
    p = torch.sigmoid(outputs)
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(outputs, targets), expected)
    product = (p**targets * (1 - p) ** (1 - targets)).log()  # of Bernoulli's distribution
    torch.testing.assert_close(loss(outputs, targets), -product.mean())
    extreme, labels = torch.tensor([[1000.0], [-1000.0]] * 2), torch.tensor([[0.0], [0.0], [1.0], [1.0]])
    assert loss.per_sample(extreme, labels).tolist() == [1000.0, 0.0, 0.0, 1000.0]


@pytest.mark.curriculum("T03")
def test_signs_and_zero_one_labels_agree():
    """The same labels written as signs and as {0, 1} give the same loss and the same decisions."""
    outputs, labels = torch.randn(64, 1, dtype=torch.float64), example("binary", 1)
    for name in ("bce", "perceptron", "hinge"):
        binary, sign = loss_of(name, "binary"), loss_of(name, "sign")
        torch.testing.assert_close(binary(outputs, labels), sign(outputs, 2 * labels - 1))
        assert torch.equal(2 * binary.predict(outputs) - 1, sign.predict(outputs))


@pytest.mark.curriculum("L16", "T06")
def test_several_labels_are_independent_detectors():
    """The loss is the sum of the detectors' losses, a label leaves the other logits' gradients alone, two may be on."""
    loss, targets = loss_of("bce", "multi_hot", 6), example("multi_hot", 6)
    outputs = torch.randn(64, 6, dtype=torch.float64, requires_grad=True)
    parts = sum(loss_of("bce", "binary")(outputs[:, k : k + 1], targets[:, k : k + 1]) for k in range(6))
    torch.testing.assert_close(loss(outputs, targets), parts)
    changed = targets.clone()
    changed[:, 2] = 1 - changed[:, 2]
    before, after = (torch.autograd.grad(loss(outputs, t), outputs)[0] for t in (targets, changed))
    moved = (before != after).any(0).tolist()
    assert moved == [False, False, True, False, False, False]
    assert loss.predict(torch.tensor([[3.0, 2.0, -1.0, -1.0, -1.0, -1.0]])).sum() == 2


@pytest.mark.curriculum("L22")
def test_bce_of_pixels():
    """The cross-entropy of pixels is summed over the image and smallest where the prediction is the pixel."""
    loss, pixels = loss_of("bce", "unit", 6), example("unit", 6)
    outputs = torch.logit(pixels).requires_grad_()
    expected = -(pixels * pixels.log() + (1 - pixels) * (1 - pixels).log()).sum(1).mean()
    value = loss(outputs, pixels)
    value.backward()
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(loss.predict(outputs.detach()), pixels)
    assert outputs.grad.abs().max() < 1e-12
    assert loss.distribution(outputs) is None


@pytest.mark.curriculum("L10", "L09")
def test_ce_literals():
    """Logits (2, 1, 0) with class 0 give 0.407606, equal logits log 10, and huge logits stay finite; so for one sample."""
    loss = loss_of("ce", "class", 3)
    logits = torch.tensor([[2.0, 1.0, 0.0], [1000.0, 0.0, -1000.0]])
    assert loss.per_sample(logits, torch.tensor([0, 2])).tolist() == pytest.approx([0.407606, 2000.0], abs=1e-6)
    assert loss(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0])).item() == pytest.approx(0.407606, abs=1e-6)
    uniform = loss_of("ce", "class", 10)(torch.zeros(4, 10), torch.arange(4))
    assert uniform.item() == pytest.approx(2.302585, abs=1e-6)
    assert loss(torch.tensor([[1000.0, 0.0, -1000.0]]), torch.tensor([2])).item() == 2000.0


@pytest.mark.curriculum("L09")
def test_softmax_properties():
    """Probabilities sum to 1, ignore a shift of all logits, and for two classes are the sigmoid of the difference."""
    loss, outputs = loss_of("ce", "class", 6), torch.randn(64, 6, dtype=torch.float64)
    probabilities = loss.probabilities(outputs)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(64, dtype=torch.float64))
    torch.testing.assert_close(loss.probabilities(outputs + 1000), probabilities)
    two = loss_of("ce", "binary").probabilities(outputs[:, :2])
    torch.testing.assert_close(two, torch.sigmoid(outputs[:, 1:2] - outputs[:, :1]))


@pytest.mark.curriculum("L11")
def test_ce_gradient_is_softmax_minus_one_hot():
    """The gradient of the mean with respect to the logits is (softmax - one-hot) / T."""
    outputs = torch.randn(64, 6, dtype=torch.float64, requires_grad=True)
    targets = example("class", 6)
    loss_of("ce", "class", 6)(outputs, targets).backward()
    expected = (torch.softmax(outputs, 1) - F.one_hot(targets, 6)) / 64
    torch.testing.assert_close(outputs.grad, expected.detach(), atol=1e-9, rtol=0)


@pytest.mark.curriculum("L11")
def test_gradient_of_softmax_regression_is_a_sum_of_outer_products():
    """∇L(W) = Σ φ_n (y_n - t_n)^T over the samples, here their mean, as the gradient of the linear model's weights."""
    model = MODELS.build({"name": "linear"}, input_shape=(5,), num_outputs=6).double()
    features, targets = torch.randn(64, 5, dtype=torch.float64), example("class", 6)
    loss_of("ce", "class", 6)(model(features), targets).backward()
    with torch.no_grad():
        error = torch.softmax(model(features), 1) - F.one_hot(targets, 6)
        products = torch.stack([torch.outer(phi, e) for phi, e in zip(features, error, strict=True)]).sum(0)  # (D, K)
    torch.testing.assert_close(64 * model.head.weight.grad.T, products)


@pytest.mark.curriculum("L01", "L14", "D04")
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_ce_equals_pytorch(smoothing):
    """Value and gradient equal torch.nn.CrossEntropyLoss, smoothed or not, from indices or one-hot targets."""
    loss, targets = loss_of("ce", "class", 6, label_smoothing=smoothing), example("class", 6)
    outputs = torch.randn(64, 6, dtype=torch.float64, requires_grad=True)
    reference = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)
    one_hot = F.one_hot(targets, 6).double()
    torch.testing.assert_close(loss(outputs, targets), reference(outputs, targets))
    torch.testing.assert_close(loss(outputs, targets), reference(outputs, one_hot), atol=1e-7, rtol=0)
    ours, theirs = (torch.autograd.grad(f(outputs, targets), outputs)[0] for f in (loss, reference))
    torch.testing.assert_close(ours, theirs)
    assert (loss.distribution(outputs) is None) == (smoothing > 0)


def test_label_smoothing_may_be_a_stacked_tensor():
    """Under vmap, members with different smoothing get the loss and gradient that each has alone."""
    loss, targets = loss_of("ce", "class", 6), example("class", 6)
    outputs = torch.randn(3, 64, 6, dtype=torch.float64)
    rates = torch.tensor([0.0, 0.1, 0.4], dtype=torch.float64)

    def value(member, rate):
        loss.label_smoothing = rate
        return loss(member, targets)

    gradients, values = torch.func.vmap(torch.func.grad_and_value(value))(outputs, rates)
    for member, rate, got, gradient in zip(outputs, rates.tolist(), values, gradients, strict=True):
        member = member.clone().requires_grad_()
        expected = F.cross_entropy(member, targets, label_smoothing=rate)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, member)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_runs_under_vmap(kind):
    """Stacked members have the values and gradients of lone ones for every loss."""
    size = size_of(kind)
    targets = example(kind, size)
    for name in fitting(kind):
        loss = loss_of(name, kind, size)
        outputs = torch.randn(3, 64, loss.num_outputs, dtype=torch.float64)
        step = torch.func.grad_and_value(loss)
        gradients, values = torch.func.vmap(step, in_dims=(0, None))(outputs, targets)
        for member, gradient, value in zip(outputs, gradients, values, strict=True):
            lone_gradient, lone = step(member, targets)
            torch.testing.assert_close(value, lone)
            torch.testing.assert_close(gradient, lone_gradient)


@pytest.mark.curriculum("L15")
def test_perceptron_literal():
    """d = +1 with score -0.3 costs 0.3; when all samples are right, loss and gradient are exactly 0."""
    loss = loss_of("perceptron", "sign")
    assert loss(torch.tensor([[-0.3]]), torch.ones(1, 1)).item() == pytest.approx(0.3)
    outputs = torch.tensor([[0.2], [-0.7]], requires_grad=True)
    value = loss(outputs, torch.tensor([[1.0], [-1.0]]))
    value.backward()
    assert value.item() == 0.0
    assert outputs.grad.abs().max().item() == 0.0


@pytest.mark.curriculum("L15", "O17")
def test_perceptron_gradient_is_the_rule():
    """One SGD step on a misclassified sample is w <- w + γ d x; a correct one leaves w unchanged."""
    loss = loss_of("perceptron", "sign")
    for score_sign, moves in ((-1.0, True), (1.0, False)):
        x, d = torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0]])
        weights = (score_sign * d * x).squeeze(0).clone().requires_grad_()
        loss((x @ weights)[:, None], d).backward()
        expected = -(d * x).squeeze(0) if moves else torch.zeros(2)
        torch.testing.assert_close(weights.grad, expected)


def test_perceptron_of_several_classes():
    """Highest score less that of the true class: 0 when right, 1.5 here when wrong."""
    loss = loss_of("perceptron", "class", 3)
    values = loss.per_sample(torch.tensor([[2.0, 0.5, 0.0], [2.0, 0.5, 0.0]]), torch.tensor([0, 1]))
    assert values.tolist() == [0.0, 1.5]


@pytest.mark.curriculum("L24")
@pytest.mark.parametrize(("kind", "size"), [("sign", 1), ("class", 6)])
def test_hinge_equals_scikit_learn(kind, size):
    """Equals sklearn.metrics.hinge_loss for two classes and for several."""
    targets, outputs = example(kind, size), torch.randn(64, size, dtype=torch.float64)
    scores = outputs.squeeze(1).numpy()
    expected = hinge_loss(targets.reshape(-1).numpy(), scores)
    assert loss_of("hinge", kind, size)(outputs, targets).item() == pytest.approx(expected)


@pytest.mark.curriculum("L18", "T04")
def test_decisions_on_outputs_equal_those_on_probabilities():
    """argmax of logits = argmax of probabilities = argmax after a shift; threshold 0.5 = sign of the logit."""
    outputs = torch.randn(64, 6)
    ce, bce = loss_of("ce", "class", 6), loss_of("bce", "multi_hot", 6)
    assert torch.equal(ce.predict(outputs), ce.probabilities(outputs).argmax(1))
    assert torch.equal(ce.predict(outputs), ce.predict(outputs + 7))
    assert torch.equal(bce.predict(outputs), (bce.probabilities(outputs) >= 0.5).float())
    assert bce.predict(torch.zeros(1, 6)).sum() == 6  # the threshold unit fires at exactly 0


@pytest.mark.curriculum("T14")
def test_sampled_moments():
    """Samples of a declared distribution have the mean and variance that `predict` and `std` promise."""
    torch.manual_seed(0)
    for name, kind in (("gaussian_nll", "real"), ("exponential_nll", "non_negative")):
        loss = loss_of(name, kind)
        outputs = torch.full((1, loss.num_outputs), 0.7)
        samples = loss.distribution(outputs).sample((100_000,))
        assert samples.mean().item() == pytest.approx(loss.predict(outputs).item(), rel=0.01)
        assert samples.var().item() == pytest.approx(loss.std(outputs).square().item(), rel=0.01)
    sign = loss_of("bce", "sign").distribution(torch.tensor([[0.7]]))
    samples = sign.sample((100_000,))
    assert set(samples.unique().tolist()) == {-1.0, 1.0}
    assert samples.mean().item() == pytest.approx(sign.mean.item(), abs=0.01)
    assert samples.var().item() == pytest.approx(sign.variance.item(), abs=0.01)
