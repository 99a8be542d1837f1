"""Penalties and projections against hand-computed numbers and PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from dlrun import streams
from dlrun.models import MODELS
from dlrun.optimizers._groups import build_optimizer
from dlrun.registry import ConfigError
from dlrun.regularization import REGULARIZATION
from dlrun.regularization._build import build_regularizers, check_regularizers

OUTPUTS = torch.zeros(1, 2)


def build(name: str, **settings):
    return build_regularizers({name: {"name": name, **settings}})[name]


def literal_layer() -> nn.Linear:
    """A dense layer with the curriculum's W = [[1, -2], [3, 0]] and a bias."""
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        layer.bias.copy_(torch.tensor([5.0, -7.0]))
    return layer


@pytest.mark.parametrize(
    ("name", "omega", "gradient"),
    [
        pytest.param("l2", 14.0, [[2.0, -4.0], [6.0, 0.0]], marks=pytest.mark.curriculum("R02")),
        pytest.param("l1", 6.0, [[1.0, -1.0], [1.0, 0.0]], marks=pytest.mark.curriculum("R03")),
    ],
)
def test_literals(name: str, omega: float, gradient: list) -> None:
    """Omega and its gradient on W = [[1, -2], [3, 0]] are the curriculum's, biases get none, and layers add up."""
    layer = literal_layer()
    penalty = build(name, strength=1.0).penalty(layer, OUTPUTS)
    penalty.backward()
    assert penalty.item() == omega
    assert torch.equal(layer.weight.grad, torch.tensor(gradient))
    assert layer.bias.grad is None
    deeper = nn.Sequential(layer, nn.Conv2d(1, 1, 2), literal_layer())  # the sum over all layers
    nn.init.ones_(deeper[1].weight)
    assert build(name, strength=1.0).penalty(deeper, OUTPUTS).item() == 2 * omega + 4


@pytest.mark.curriculum("R02")
def test_l2_equals_weight_decay_of_twice_the_strength() -> None:
    """SGD on loss + 0.05 Omega takes the path of weight decay 0.1."""
    start, inputs = nn.Linear(3, 2).double(), torch.randn(7, 3, dtype=torch.float64)
    ends = []
    for strength, decay in ((0.05, 0.0), (0.0, 0.1)):
        model = copy.deepcopy(start)
        optimizer = build_optimizer({"name": "sgd", "lr": 0.1, "weight_decay": decay}, model)
        for _ in range(10):
            optimizer.zero_grad()
            (model(inputs).pow(2).mean() + build("l2", strength=strength).penalty(model, OUTPUTS)).backward()
            optimizer.step()
        ends.append(model.weight.detach())
    torch.testing.assert_close(*ends, rtol=1e-12, atol=1e-14)


@pytest.mark.curriculum("R01")
@pytest.mark.parametrize("name", ["l1", "l2"])
def test_strength_zero_changes_no_bit(name: str) -> None:
    """With strength 0 the gradients are bit-identical to those without the penalty."""
    model, inputs = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    twin = copy.deepcopy(model)
    model(inputs).pow(2).mean().backward()
    loss = twin(inputs).pow(2).mean()
    total = loss + build(name, strength=0.0).penalty(twin, OUTPUTS)
    total.backward()
    assert total.item() == loss.item()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_penalties_skip_norm_layers_and_count_shared_weights_once() -> None:
    """Only trainable weights outside norm layers count, a tied one once."""
    model = nn.Sequential(literal_layer(), nn.LayerNorm([2, 2]), literal_layer(), literal_layer().requires_grad_(False))
    model[2].weight = model[0].weight
    assert build("l2", strength=1.0).penalty(model, OUTPUTS).item() == 14.0


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_penalties_skip_positions(name: str) -> None:
    """A transformer's learned positions are added like biases: no penalty, alone or stacked; its other matrices have one."""
    context = {"input_shape": (1, 4, 4), "num_outputs": 2}
    model = MODELS.build(
        {"name": "transformer", "width": 4, "heads": 2, "layers": 1, "readout": "class_token"}, **context
    )
    regularizer = build(name, strength=1.0)
    regularizer.penalty(model, OUTPUTS).backward()
    penalised = {n for n, p in model.named_parameters() if p.grad is not None}
    assert penalised == {n for n, p in model.named_parameters() if p.ndim == 2} - {"positions"}
    without = sum((p.abs() if name == "l1" else p * p).sum() for n, p in model.named_parameters() if n in penalised)
    assert regularizer.penalty(model, OUTPUTS).item() == pytest.approx(without.item(), rel=1e-6)

    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self) -> torch.Tensor:
            return regularizer.penalty(self.inner, OUTPUTS)

    parameters = {n: p.detach()[None] for n, p in Penalised().named_parameters()}
    grads = vmap(grad(lambda p: functional_call(Penalised(), p)))(parameters)
    assert {n.removeprefix("inner.") for n, g in grads.items() if g.any()} == penalised


def test_no_weights_no_penalty() -> None:
    """A model without weights has no penalty instead of an error."""
    assert build("l1").penalty(nn.BatchNorm1d(3), OUTPUTS) is None


@pytest.mark.curriculum("R03")
def test_l1_makes_weights_small() -> None:
    """The share of weights below 1e-3 grows with the strength of the L1 penalty."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 20, generator=generator)
    targets = inputs[:, :3].sum(1, keepdim=True) + 0.3 * torch.randn(200, 1, generator=generator)
    with streams.seeded(0, "initialisation"):
        start = nn.Linear(20, 1)
    shares = []
    for strength in (0.0, 0.02, 0.2):
        model = copy.deepcopy(start)
        optimizer = build_optimizer({"name": "sgd", "lr": 0.002}, model)  # small weights swing by lr * strength < 1e-3
        for _ in range(2000):
            optimizer.zero_grad()
            loss = (model(inputs) - targets).pow(2).mean()
            (loss + build("l1", strength=strength).penalty(model, OUTPUTS)).backward()
            optimizer.step()
        shares.append((model.weight.abs() < 1e-3).float().mean().item())
    assert shares[0] < 0.2
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.7


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_penalties_work_under_torch_func(name: str) -> None:
    """Stacked members get, through vmap(grad), the penalty gradients they get alone, each with its own strength."""

    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))

        def forward(self, inputs: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
            regularizer = build(name)
            regularizer.strength = strength
            return self.net(inputs).pow(2).mean() + regularizer.penalty(self.net, OUTPUTS)

    members = [Penalised().double() for _ in range(3)]
    strengths = torch.tensor([0.0, 0.1, 2.0], dtype=torch.float64)
    inputs = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    params, buffers = stack_module_state(members)
    base = copy.deepcopy(members[0]).to("meta")
    objective = lambda p, b, s: functional_call(base, (p, b), (inputs, s))  # noqa: E731
    stacked = vmap(grad(objective))(params, buffers, strengths)
    for i, member in enumerate(members):
        member(inputs, strengths[i]).backward()
        for key, parameter in member.named_parameters():
            torch.testing.assert_close(stacked[key][i], parameter.grad, rtol=1e-12, atol=1e-14)


def test_max_norm_by_hand() -> None:
    """Rows above the limit are scaled onto it, rows below and biases stay as they are, zeros stay zeros."""
    layer = nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.6, 0.8], [0.0, 0.0]]))
    bias = layer.bias.detach().clone()
    build("max_norm", limit=2.5).project(layer)
    torch.testing.assert_close(layer.weight.data, torch.tensor([[1.5, 2.0], [0.6, 0.8], [0.0, 0.0]]))
    assert torch.equal(layer.bias.data, bias)
    assert layer.weight.requires_grad


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (nn.Linear(20, 6), 0),
        (nn.Conv2d(4, 6, 3), 0),
        (nn.Conv2d(4, 6, 3, groups=2), 0),
        (nn.ConvTranspose2d(4, 6, 3), 1),
    ],
)
def test_max_norm_equals_renorm(layer: nn.Module, axis: int) -> None:
    """The projection of a layer equals torch.renorm along the axis of its units."""
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(0.1, 9, 6).view([-1 if i == axis else 1 for i in range(layer.weight.ndim)]))
    expected = torch.renorm(layer.weight.data, p=2, dim=axis, maxnorm=1.5)
    assert not torch.equal(expected, layer.weight.data)
    build("max_norm", limit=1.5).project(layer)
    torch.testing.assert_close(layer.weight.data, expected)


def test_max_norm_of_a_grouped_transposed_convolution() -> None:
    """Each output channel of a grouped transposed convolution is limited by its own incoming weights."""
    layer = nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False)
    with torch.no_grad():
        layer.weight.mul_(10)
    before = layer.weight.detach().clone()
    build("max_norm", limit=1.0).project(layer)
    for group in range(2):
        for unit in range(3):
            part = before[2 * group : 2 * group + 2, unit]
            expected = part * min(1.0, 1.0 / part.norm().item())
            torch.testing.assert_close(layer.weight.data[2 * group : 2 * group + 2, unit], expected)


@pytest.mark.curriculum("R16")
def test_non_negative() -> None:
    """After projected gradient steps the smallest weight is at least 0, and the solution is that of scipy's NNLS."""
    from scipy.optimize import nnls

    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, dtype=torch.float64, generator=generator)
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, -0.1], dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    optimizer = build_optimizer({"name": "sgd", "lr": 0.1}, model)
    projection = build("non_negative")
    for _ in range(500):
        optimizer.zero_grad()
        (model(inputs).squeeze(1) - targets).pow(2).mean().backward()
        optimizer.step()
        projection.project(model)
        assert model.weight.min() >= 0
    expected, _ = nnls(inputs.numpy(), targets.numpy())
    torch.testing.assert_close(model.weight.data[0], torch.from_numpy(expected), rtol=1e-8, atol=1e-10)


class TinyAutoencoder(nn.Module):
    """A dense autoencoder that keeps its latest code."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(6, 4), nn.Linear(4, 6)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.down(inputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.code = self.encode(inputs)
        return self.up(self.code)


@pytest.mark.curriculum("R13", "U13")
def test_code_sparsity() -> None:
    """The penalty is the mean over samples of the L1 norm of the code, and a larger strength gives smaller codes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 6, generator=generator)
    start, means = TinyAutoencoder(), []
    outputs = start(inputs)
    penalty = build("code_sparsity", strength=0.5).penalty(start, outputs)
    assert penalty.item() == pytest.approx(0.5 * start.code.abs().sum(dim=1).mean().item(), rel=1e-6)
    for strength in (0.0, 0.1, 1.0):
        torch.manual_seed(0)
        model = TinyAutoencoder()
        optimizer = build_optimizer({"name": "adam", "lr": 0.01}, model)
        for _ in range(150):
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = (outputs - inputs).pow(2).sum(1).mean()
            (loss + build("code_sparsity", strength=strength).penalty(model, outputs)).backward()
            optimizer.step()
        means.append(model.encode(inputs).abs().mean().item())
    assert means[0] > means[1] > means[2]


def test_code_sparsity_needs_a_code() -> None:
    """A model without a code is refused in one line."""
    with pytest.raises(ConfigError, match=r"regularization\.code_sparsity: Linear has no code"):
        build("code_sparsity").penalty(nn.Linear(2, 2), OUTPUTS)


def test_build_keeps_names_and_order() -> None:
    """The mapping composes: each entry is built under its own name, in the order given."""
    node = {"max_norm": {"name": "max_norm"}, "mine": {"name": "l1", "strength": 0.5}}
    check_regularizers(node)
    built = build_regularizers(node)
    assert list(built) == ["max_norm", "mine"]
    assert built["mine"].strength == 0.5
    assert build_regularizers({}) == {}


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"l1": {"name": "l3"}}, "regularization.l1.name: unknown 'l3'; allowed: .*l1"),
        ({"l1": {"name": "l1", "strength": -1}}, "regularization.l1.strength: got -1; expected float >= 0"),
        ({"l1": {"name": "l1", "strenght": 1}}, "regularization.l1.strenght: unknown.*did you mean 'strength'"),
        ({"max_norm": {"name": "max_norm", "limit": 0}}, "regularization.max_norm.limit: got 0; expected float > 0"),
        ({"l1": None}, "regularization.l1: got None; expected a mapping"),
        ({"l1": 0.1}, "regularization.l1: got 0.1; expected a mapping"),
    ],
)
def test_bad_settings(node: dict, message: str) -> None:
    """A wrong entry is refused by check and by build in one line with the dotted key."""
    for function in (check_regularizers, build_regularizers):
        with pytest.raises(ConfigError, match=message) as error:
            function(node)
        assert "\n" not in str(error.value)


def test_options_compose(tmp_path) -> None:
    """Options of the group compose as a mapping, and early_stopping sets the trainer's patience."""
    from hydra import compose, initialize_config_dir

    from dlrun.settings import config_dir

    (tmp_path / "probe.yaml").write_text(
        "defaults: [_self_, {regularization: [l1, max_norm, early_stopping]}]\n"
        "trainer: {patience: null, min_delta: 1.0}\n"
        "hydra: {searchpath: [file://" + str(config_dir()) + "]}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        config = compose("probe", overrides=["regularization.l1.strength=0.25"])
    assert config.regularization.l1 == {"name": "l1", "strength": 0.25}
    assert config.regularization.max_norm == {"name": "max_norm", "limit": 3.0}
    assert config.trainer == {"patience": 5, "min_delta": 0.0}
    assert set(REGULARIZATION.names()) >= {"l1", "l2", "max_norm", "code_sparsity", "non_negative"}
