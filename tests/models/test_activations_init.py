"""Activations and initialisations against formulas and literals of the courses."""

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dlrun.build import build_trainer
from dlrun.models import MODELS
from dlrun.models._activations import Activation, activation_module
from dlrun.models._init import Init, initialize


@pytest.mark.parametrize("name", get_args(Activation))
@pytest.mark.curriculum("M18", "M19", "M21")
def test_activations_are_finite_far_from_zero(name):
    """Value and gradient of every activation are finite at +-1000."""
    x = torch.tensor([-1000.0, -1.0, 0.0, 1.0, 1000.0], requires_grad=True)
    y = activation_module(name)(x)
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.curriculum("M18")
def test_sigmoid_value_and_slope_at_zero():
    """The sigmoid is 0.5 at 0 with slope 0.25."""
    x = torch.zeros(1, requires_grad=True)
    y = activation_module("sigmoid")(x)
    y.backward()
    assert (y.item(), x.grad.item()) == (0.5, 0.25)


@pytest.mark.curriculum("M19")
def test_tanh_is_a_scaled_sigmoid():
    """tanh(a/2) = 2 sigmoid(a) - 1, and the slope of g = tanh is 1 - g^2."""
    a = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    g = activation_module("tanh")(a / 2)
    torch.testing.assert_close(g, 2 * activation_module("sigmoid")(a) - 1, atol=1e-6, rtol=0)
    (slope,) = torch.autograd.grad(g.sum(), a)
    torch.testing.assert_close(slope, (1 - g.detach() ** 2) / 2, atol=1e-6, rtol=0)


@pytest.mark.curriculum("M20")
def test_relu_gradient_at_zero_is_zero():
    """The ReLU is max(0, a), and its gradient at exactly 0 is 0."""
    a = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    y = activation_module("relu")(a)
    y.sum().backward()
    assert y.tolist() == [0, 0, 3]
    assert a.grad.tolist() == [0, 0, 1]


@pytest.mark.curriculum("M21")
def test_softplus_does_not_overflow_and_has_the_sigmoid_as_slope():
    """softplus(100) = 100, and its derivative is the sigmoid."""
    a = torch.linspace(-10, 10, 41, requires_grad=True)
    activation_module("softplus")(a).sum().backward()
    torch.testing.assert_close(a.grad, torch.sigmoid(a.detach()))
    assert activation_module("softplus")(torch.tensor(100.0)).item() == 100.0


@pytest.mark.curriculum("M17")
@pytest.mark.parametrize(("name", "values"), [("sign", [-1.0, 1.0, 1.0]), ("heaviside", [0.0, 1.0, 1.0])])
def test_thresholds(name, values):
    """The thresholds take their upper value at 0."""
    assert activation_module(name)(torch.tensor([-0.1, 0.0, 0.1])).tolist() == values


@pytest.mark.curriculum("M17")
@pytest.mark.parametrize("name", ["sign", "heaviside"])
def test_hidden_threshold_layers_get_zero_gradients(name):
    """Behind a threshold every weight has a gradient, and it is 0."""
    model = MODELS.build({"name": "mlp", "hidden": [5], "activation": name}, input_shape=(3,), num_outputs=2)
    model(torch.randn(8, 3)).square().sum().backward()
    assert model.hidden.dense1.weight.grad.abs().max() == 0
    assert model.head.weight.grad.abs().max() > 0


@pytest.mark.curriculum("M16")
def test_deep_linear_network_collapses_to_an_affine_map():
    """With the linear activation, W3 W2 W1 x + W3 W2 b1 + W3 b2 + b3."""
    node = {"name": "mlp", "dropout": 0.0, "hidden": [7, 6], "activation": "linear", "init_bias": 0.3}
    model = MODELS.build(node, input_shape=(4,), num_outputs=3)
    (w1, b1), (w2, b2), (w3, b3) = ((m.weight, m.bias) for m in model.modules() if isinstance(m, nn.Linear))
    x = torch.randn(9, 4)
    torch.testing.assert_close(model(x), F.linear(x, w3 @ w2 @ w1, w3 @ w2 @ b1 + w3 @ b2 + b3), atol=1e-5, rtol=0)


@pytest.mark.curriculum("M16")
def test_a_deep_linear_network_cannot_solve_xor(composed, tmp_path):
    """Trained on XOR it gets at most 3 corners of 4 right, where the same network with ReLU gets all."""
    accuracy = {}
    for activation in ("linear", "relu"):
        net = ("model=mlp", "model.hidden=[16,16]", "model.dropout=0", f"model.activation={activation}")
        data = ("data=xor", "data.samples=400", "optimizer.lr=0.02", "trainer.epochs=5")
        config = composed("device=cpu", "callbacks=none", *data, *net)
        (tmp_path / activation).mkdir()
        trainer = build_trainer(config, tmp_path / activation)
        trainer.fit()
        accuracy[activation] = trainer.evaluate("train")["accuracy"]
    assert accuracy["linear"] <= 0.76
    assert accuracy["relu"] > 0.99


@pytest.mark.curriculum("M23")
def test_glorot_bound_and_variance():
    """784 -> 300: uniform within 0.0744 with variance b^2 / 3, and biases 0; so 300 -> 100 and the head, by their own sizes."""
    torch.manual_seed(0)
    node = {"name": "mlp", "hidden": [300, 100], "init": "glorot_uniform"}
    model = MODELS.build(node, input_shape=(784,), num_outputs=50)
    assert round(math.sqrt(6 / (784 + 300)), 4) == 0.0744
    for layer, sizes in ((model.hidden.dense1, 784 + 300), (model.hidden.dense2, 300 + 100), (model.head, 100 + 50)):
        bound = math.sqrt(6 / sizes)
        assert 0.99 * bound < layer.weight.abs().max() <= bound
        assert layer.weight.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
        assert layer.bias.abs().max() == 0


def test_he_normal_variance_counts_the_kernel():
    """He initialisation of a convolution has variance 2 / (channels * kernel area)."""
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 128, 3)
    initialize(conv, "he_normal")
    assert conv.weight.var().item() == pytest.approx(2 / (64 * 9), rel=0.03)


@pytest.mark.curriculum("M23")
def test_biases_can_start_at_one():
    """The second option of the recipe: biases of 1."""
    model = MODELS.build({"name": "mlp", "init": "glorot_uniform", "init_bias": 1.0}, input_shape=(3,), num_outputs=2)
    assert all((m.bias == 1).all() for m in model.modules() if isinstance(m, nn.Linear))


@pytest.mark.curriculum("M24")
@pytest.mark.parametrize("name", ["lenet", "cnn", "resnet_cifar"])
def test_no_two_filters_start_equal(name):
    """The filters of a first convolution are all different."""
    model = MODELS.build({"name": name}, input_shape=(1, 28, 28), num_outputs=10)
    filters = next(m for m in model.modules() if isinstance(m, nn.Conv2d)).weight.flatten(1)
    assert len(filters.unique(dim=0)) == len(filters)


@pytest.mark.curriculum("P21", "M24")
def test_zero_and_constant_initialisation_do_not_break_symmetry():
    """Weights of 0 give hidden weights no gradient under tanh; equal weights stay equal under training."""
    torch.manual_seed(0)
    x, y = torch.randn(16, 3), torch.randn(16, 2)
    node = {"name": "mlp", "dropout": 0.0, "hidden": [4], "activation": "tanh"}
    zero = MODELS.build({**node, "init": "zeros"}, input_shape=(3,), num_outputs=2)
    F.mse_loss(zero(x), y).backward()
    assert zero.hidden.dense1.weight.grad.abs().max() == 0

    equal = MODELS.build({**node, "init": "constant"}, input_shape=(3,), num_outputs=2)
    optimizer = torch.optim.SGD(equal.parameters(), lr=0.5)
    start = equal.hidden.dense1.weight.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        F.mse_loss(equal(x), y).backward()
        optimizer.step()
    weight = equal.hidden.dense1.weight.detach()
    torch.testing.assert_close(weight, weight[:1].expand_as(weight))
    assert (weight - start).abs().max() > 1e-3


@pytest.mark.curriculum("M24", "P21")
def test_equal_filters_stay_equal():
    """With init=constant all filters of a convolution get the same gradient: after twenty updates they have moved, together."""
    torch.manual_seed(0)
    model = MODELS.build({"name": "lenet", "init": "constant", "dropout": 0.0}, input_shape=(1, 16, 16), num_outputs=4)
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    start = conv.weight.detach().clone()
    x, y = torch.rand(16, 1, 16, 16), torch.randint(4, (16,))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    weight = conv.weight.detach()
    torch.testing.assert_close(weight, weight[:1].expand_as(weight))
    assert (weight - start).abs().max() > 1e-3


@pytest.mark.parametrize("init", get_args(Init))
def test_initialisations_draw_from_the_global_generator_only(init):
    """The same seed gives the same weights, so a run's initialisation is a function of its seed."""
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(MODELS.build({"name": "lenet", "init": init}, input_shape=(1, 28, 28), num_outputs=10))
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(a, b)
