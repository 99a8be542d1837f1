"""Linear models, perceptrons and multilayer perceptrons: parameter counts, given weights, training."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from dlrun.models import MODELS
from dlrun.models._dropout import random_modules, set_keys
from dlrun.models._norm import BatchNorm1d
from dlrun.models._summary import count_parameters
from dlrun.registry import ConfigError


def build(name, inputs, outputs, **settings):
    return MODELS.build({"name": name, **settings}, input_shape=inputs, num_outputs=outputs)


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "settings", "count"),
    [
        pytest.param("linear", (1, 28, 28), 10, {}, 7850, marks=pytest.mark.curriculum("M05")),
        pytest.param("linear", (3,), 4, {}, 16, marks=pytest.mark.curriculum("M14")),
        pytest.param("linear", (6,), 1, {}, 7, marks=pytest.mark.curriculum("M04")),
        pytest.param("linear", (6,), 5, {}, 35, marks=pytest.mark.curriculum("M01", "M54")),
        pytest.param("linear", (6,), 5, {"bias": False}, 30, marks=pytest.mark.curriculum("D05")),
        pytest.param("gaussian_classifier", (2, 3), 3, {}, 21, marks=pytest.mark.curriculum("M07")),
        pytest.param("constant", (6,), 5, {}, 5, marks=pytest.mark.curriculum("T12")),
        pytest.param("mlp", (3,), 2, {"hidden": [4]}, 26, marks=pytest.mark.curriculum("M10")),
        pytest.param("mlp", (100,), 10, {"hidden": [50]}, 5560, marks=pytest.mark.curriculum("M11")),
        pytest.param("mlp", (10,), 10, {"hidden": [10, 10, 10]}, 440, marks=pytest.mark.curriculum("M12")),
        pytest.param("mlp", (1,), 1, {"hidden": [1, 1, 1]}, 8, marks=pytest.mark.curriculum("M13")),
        pytest.param("mlp", (5,), 2, {"hidden": []}, 12, marks=pytest.mark.curriculum("M15")),
        # without biases before batch norm, with its scale and shift: 3*4 + 2*4 + 4*2 + 2
        pytest.param("mlp", (3,), 2, {"hidden": [4], "batch_norm": True}, 30, marks=pytest.mark.curriculum("R09")),
    ],
)
def test_parameter_counts(name, inputs, outputs, settings, count):
    """Sum of n_k (n_{k-1} + 1) over the layers."""
    model = build(name, inputs, outputs, **settings)
    assert count_parameters(model) == count
    assert model(torch.randn(7, *inputs)).shape == (7, outputs)


@pytest.mark.curriculum("M22")
def test_xor_network_with_given_weights():
    """W1 = [[1,-1],[-1,1]], w2 = (1,1), no biases: y = |x1 - x2|."""
    model = build("mlp", (2,), 1, hidden=[2], init="glorot_uniform", dropout=0.0)
    with torch.no_grad():
        model.hidden.dense1.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        model.head.weight.copy_(torch.ones(1, 2))
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert model(x).flatten().tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("inputs", "outputs", "hidden"),
    [
        pytest.param(3, 4, [5, 6], marks=pytest.mark.curriculum("M14")),
        pytest.param(1, 1, [1, 1, 1], marks=pytest.mark.curriculum("M13")),
        pytest.param(10, 10, [10, 10, 10], marks=pytest.mark.curriculum("M12")),
    ],
)
def test_the_head_is_not_activated(inputs, outputs, hidden):
    """z_k = σ(A_k z_{k-1} + b_k) in every hidden layer, and A z + b without σ is what the model gives."""
    model = build("mlp", (inputs,), outputs, hidden=hidden, activation="sigmoid", dropout=0.0).double()
    affine = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    for layer in affine:
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    torch.nn.init.constant_(model.head.bias, -5.0)
    z = x = 3 * torch.randn(20, inputs, dtype=torch.float64)
    for layer in affine[:-1]:
        z = 1 / (1 + torch.exp(-(z @ layer.weight.T + layer.bias)))
    raw = z @ affine[-1].weight.T + affine[-1].bias
    torch.testing.assert_close(model(x), raw)
    assert raw.min() < 0
    assert [(layer.in_features, layer.out_features) for layer in affine] == [*pairwise([inputs, *hidden, outputs])]


@pytest.mark.curriculum("M15")
def test_an_activation_per_layer():
    """A list gives each hidden layer its own; the forward pass is the written-out formula."""
    model = build("mlp", (3,), 2, hidden=[4, 5], activation=["tanh", "sigmoid"], init_bias=0.1, dropout=0.0)
    x = torch.randn(6, 3)
    h1 = torch.tanh(F.linear(x, model.hidden.dense1.weight, model.hidden.dense1.bias))
    h2 = torch.sigmoid(F.linear(h1, model.hidden.dense2.weight, model.hidden.dense2.bias))
    torch.testing.assert_close(model(x), F.linear(h2, model.head.weight, model.head.bias))


def test_wrong_number_of_activations_is_refused():
    """One line that names both counts."""
    with pytest.raises(ConfigError, match=r"^model\.activation: 3 activations for 2 hidden layers;[^\n]*$"):
        build("mlp", (3,), 2, hidden=[4, 5], activation=["relu", "relu", "tanh"])


@pytest.mark.curriculum("M03")
@pytest.mark.parametrize(
    ("labels", "learnt"), [([-1, -1, -1, 1], True), ([-1, 1, 1, 1], True), ([-1, 1, 1, -1], False)]
)
def test_a_threshold_unit_learns_and_and_or_but_not_xor(labels, learnt):
    """The perceptron rule on the linear model reaches 0 errors exactly where a line separates."""
    model = build("linear", (2,), 1, init="normal")
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    d = torch.tensor(labels, dtype=torch.float32).unsqueeze(1)
    with torch.no_grad():
        for _ in range(100):
            for i in range(4):
                wrong = (torch.where(model(x[i : i + 1]) >= 0, 1.0, -1.0) != d[i]).float()
                model.head.weight += wrong * d[i] * x[i]
                model.head.bias += (wrong * d[i]).flatten()
    assert bool((torch.where(model(x) >= 0, 1.0, -1.0) == d).all()) is learnt


@pytest.mark.curriculum("R05")
def test_dropout_touches_hidden_units_only():
    """A network without hidden layers has nothing to drop."""
    model = build("mlp", (3,), 2, hidden=[], dropout=0.5).train()
    x = torch.randn(4, 3)
    torch.testing.assert_close(model(x), F.linear(x, model.head.weight, model.head.bias))


def test_dropout_of_inputs():
    """A fifth of 20,000 inputs is dropped in training and the others are 1.25 times as large; none in evaluation."""
    model = build("mlp", (20_000,), 1, hidden=[], input_dropout=0.2)
    set_keys(random_modules(model), 0, 0)
    model.head = torch.nn.Identity()
    ones = torch.ones(2, 20_000)
    assert torch.equal(model.eval()(ones), ones)
    outputs = model.train()(ones)
    assert outputs.unique().tolist() == [0.0, 1.25]
    assert (outputs == 0).double().mean().item() == pytest.approx(0.2, abs=5 * (0.16 / 40_000) ** 0.5)


@pytest.mark.curriculum("R09")
def test_batch_norm_of_1_2_3_4():
    """Biased variance: +-1.3416 and +-0.4472."""
    norm = BatchNorm1d(1).train()
    expected = torch.tensor([[-1.3416], [-0.4472], [0.4472], [1.3416]])
    torch.testing.assert_close(norm(torch.tensor([[1.0], [2.0], [3.0], [4.0]])), expected, atol=1e-4, rtol=0)
    assert all(scale_or_shift.requires_grad for scale_or_shift in (norm.weight, norm.bias))


@pytest.mark.curriculum("R09")
def test_batch_norm_in_evaluation_does_not_see_the_batch():
    """A sample's output is the same alone and among others; training accepts a batch of one and leaves statistics alone."""
    model = build("mlp", (3,), 2, hidden=[8], batch_norm=True)
    model(torch.randn(50, 3))
    before = model.hidden.norm1.running_mean.clone()
    assert model(torch.randn(1, 3)).isfinite().all()
    assert torch.equal(model.hidden.norm1.running_mean, before)
    model.eval()
    x = torch.randn(5, 3)
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


@pytest.mark.curriculum("P22")
def test_symmetries_of_the_parameters():
    """Permuted units, and ReLU inputs scaled by b with outputs by 1/b, leave the function as it is."""
    model = build("mlp", (3,), 2, hidden=[6], init_bias=0.2, dropout=0.0)
    x = torch.randn(10, 3)
    before = model(x).detach()
    order = torch.randperm(6)
    with torch.no_grad():
        model.hidden.dense1.weight.copy_(3.0 * model.hidden.dense1.weight[order])
        model.hidden.dense1.bias.copy_(3.0 * model.hidden.dense1.bias[order])
        model.head.weight.copy_(model.head.weight[:, order] / 3.0)
    torch.testing.assert_close(model(x), before, atol=1e-6, rtol=1e-5)


@pytest.mark.curriculum("T12")
def test_the_constant_model_ignores_its_inputs():
    """The same outputs for all inputs, as copies that later updates do not reach."""
    model = build("constant", (1, 8, 8), 3)
    outputs = model(torch.randn(5, 1, 8, 8))
    before = outputs.detach().clone()
    assert len(before.unique(dim=0)) == 1
    with torch.no_grad():
        model.outputs.add_(1.0)
    assert torch.equal(outputs, before)


@pytest.mark.curriculum("M54")
@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_jacobian_of_a_layer(name):
    """Of y = σ(Wx + b), whose σ is taken element by element, it is diag[σ'(Wx + b)] W."""
    model, sigma = build("mlp", (4,), 1, hidden=[3], activation=name, dropout=0.0).double(), getattr(torch, name)
    layer, x = model.hidden.dense1, torch.randn(4, dtype=torch.float64)
    y = sigma(layer(x)).detach()
    slope = y * (1 - y) if name == "sigmoid" else 1 - y**2
    jacobian = torch.func.jacrev(lambda x: model.hidden(x[None])[0])(x)
    torch.testing.assert_close(jacobian, torch.diag(slope) @ layer.weight.detach())


@pytest.mark.curriculum("D05", "M01")
def test_a_bias_is_the_weight_of_a_constant_feature():
    """A linear model with bias is one without on [x, 1]; without bias 0 is mapped to 0, so that boundaries pass through it."""
    biased, plain = build("linear", (3,), 2), build("linear", (4,), 2, bias=False)
    with torch.no_grad():
        biased.head.bias.copy_(torch.tensor([0.5, -2.0]))
        plain.head.weight.copy_(torch.cat([biased.head.weight, biased.head.bias[:, None]], 1))
    x = torch.randn(6, 3)
    torch.testing.assert_close(plain(torch.cat([x, torch.ones(6, 1)], 1)), biased(x))
    assert plain(torch.zeros(1, 4)).abs().max() == 0
