"""The optimizers against PyTorch's, the formulas of the papers and the curriculum's literals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import build_optimizer, parameter_groups
from dlrun.optimizers._state import load_state, settings_of, state_of
from dlrun.registry import ConfigError

NAMES = ["adam", "adamw", "momentum", "nesterov", "rmsprop", "sgd"]


def single(value: float | list[float], **node):
    """One parameter (a bias, so without decay) in a module, and its optimizer."""
    module = nn.Module()
    module.bias = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    return module.bias, build_optimizer(node, module)


def step(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: torch.Tensor) -> None:
    parameter.grad = gradient.clone()
    optimizer.step()


def test_names() -> None:
    """The six optimizers of the courses are registered."""
    assert set(NAMES) <= set(OPTIMIZERS.names())


@pytest.mark.curriculum("O07")
@pytest.mark.parametrize("implementation", ["fused", "foreach", "for_loop"])
def test_momentum_literals(implementation: str) -> None:
    """A constant gradient of 1 with lr 0.1 and momentum 0.9 gives 0, -0.1, -0.29, -0.561."""
    theta, optimizer = single([0.0], name="momentum", lr=0.1, momentum=0.9, implementation=implementation)
    path = [theta.item()]
    for _ in range(3):
        step(theta, optimizer, torch.ones_like(theta))
        path.append(theta.item())
    assert path == pytest.approx([0, -0.1, -0.29, -0.561], abs=1e-12)


@pytest.mark.curriculum("O08")
def test_quoted_settings() -> None:
    """The momentum defaults are the quoted SGD(lr=0.01, momentum=0.9)."""
    _, optimizer = single([0.0], name="momentum")
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["dampening"]) == (0.01, 0.9, False, 0)


@pytest.mark.curriculum("O08")
def test_quoted_adam_preset() -> None:
    """The adam_small_lr option is the quoted Adam(lr=0.0001)."""
    from omegaconf import OmegaConf

    from dlrun.settings import config_dir

    node = OmegaConf.to_container(OmegaConf.load(config_dir() / "optimizer" / "adam_small_lr.yaml"))
    assert (node["name"], OPTIMIZERS.check(node)["lr"]) == ("adam", 0.0001)


@pytest.mark.curriculum("O09")
def test_adam_first_step() -> None:
    """Adam's first step is lr * sign(gradient), whatever the size of the gradient."""
    theta, optimizer = single([1.0, 1.0, 1.0], name="adam", lr=0.01)
    step(theta, optimizer, torch.tensor([1e-3, -5.0, 400.0], dtype=torch.float64))
    torch.testing.assert_close(theta.data, torch.tensor([0.99, 1.01, 0.99], dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.curriculum("O09", "O11")
def test_adam_beats_sgd_on_an_ill_scaled_quadratic() -> None:
    """On f = (x^2 + 1e-4 y^2) / 2 Adam comes closer to the minimum in 200 steps than gradient descent at lr 1 / L."""
    scale = torch.tensor([1.0, 1e-4], dtype=torch.float64)
    losses = {}
    for name, lr in (("sgd", 1.0), ("adam", 0.05)):
        theta, optimizer = single([1.0, 1.0], name=name, lr=lr)
        for _ in range(200):
            step(theta, optimizer, scale * theta.data)
        losses[name] = (scale * theta.data**2).sum().item()
    assert losses["adam"] < 0.1 * losses["sgd"]


@pytest.mark.curriculum("O10")
def test_rmsprop_formula() -> None:
    """RMSprop follows s <- alpha s + (1 - alpha) g^2, w <- w - lr g / (sqrt(s) + eps)."""
    theta, optimizer = single([2.0], name="rmsprop", lr=0.1, alpha=0.9, eps=1e-8)
    w, s = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.5):
        step(theta, optimizer, torch.tensor([gradient], dtype=torch.float64))
        s = 0.9 * s + 0.1 * gradient**2
        w -= 0.1 * gradient / (s**0.5 + 1e-8)
    assert theta.item() == pytest.approx(w, abs=1e-12)


def test_nesterov_formula() -> None:
    """Nesterov momentum follows v <- m v + g, w <- w - lr (g + m v)."""
    theta, optimizer = single([0.0], name="nesterov", lr=0.1, momentum=0.9)
    w, v = 0.0, 0.0
    for gradient in (1.0, 2.0, -1.0):
        step(theta, optimizer, torch.tensor([gradient], dtype=torch.float64))
        v = 0.9 * v + gradient
        w -= 0.1 * (gradient + 0.9 * v)
    assert theta.item() == pytest.approx(w, abs=1e-12)


@pytest.mark.curriculum("O04")
def test_sgd_is_a_step_against_the_gradient() -> None:
    """Plain SGD moves by -lr times the gradient of the mean loss."""
    model = nn.Linear(3, 1)
    before = model.weight.detach().clone()
    optimizer = build_optimizer({"name": "sgd", "lr": 0.5}, model)
    (model(torch.randn(8, 3)) ** 2).mean().backward()
    gradient = model.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model.weight.data, before - 0.5 * gradient)


@pytest.mark.curriculum("O23")
def test_momentum_cures_the_zigzag() -> None:
    """On the quadratic diag(1, 100) momentum reaches 1e-6 in under a third of the steps of gradient descent at its best step
    size, which shrinks both coordinates by 99 / 101 a step."""
    scale = torch.tensor([1.0, 100.0], dtype=torch.float64)

    def steps(**node) -> int:
        theta, optimizer = single([1.0, 1.0], **node)
        for count in range(5000):
            if theta.data.norm() < 1e-6:
                return count
            step(theta, optimizer, scale * theta.data)
        raise AssertionError("did not converge")

    plain = steps(name="sgd", lr=2 / 101)
    assert plain == math.ceil(math.log(1e6 * 2**0.5) / math.log(101 / 99))
    assert steps(name="momentum", lr=0.033, momentum=0.67) < plain / 3


@pytest.mark.curriculum("O02")
def test_step_size_bound() -> None:
    """On a quadratic of curvature 10 a step size of 0.19 converges and 0.21 diverges."""
    ends = {}
    for lr in (0.19, 0.21):
        theta, optimizer = single([1.0], name="sgd", lr=lr)
        for _ in range(200):
            step(theta, optimizer, 10 * theta.data)
        ends[lr] = abs(theta.item())
    assert ends[0.19] < 1e-8
    assert ends[0.21] > 1e6


class Net(nn.Module):
    """A convolution, norm layers, a frozen layer and a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.layer_norm = nn.LayerNorm([4, 2])
        self.dense = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 8, bias=False)
        self.tied.weight = self.dense.weight
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


@pytest.mark.curriculum("R04")
def test_only_weights_decay() -> None:
    """Weights decay; biases and norm layers, also those of two axes, do not; frozen parameters are left out."""
    model = Net()
    decay, rest = parameter_groups(model)
    assert [id(p) for p in decay["params"]] == [id(model.conv.weight), id(model.dense.weight)]
    assert {id(p) for p in rest["params"]} == {
        id(p) for p in (model.conv.bias, model.dense.bias, *model.norm.parameters(), *model.layer_norm.parameters())
    }
    optimizer = build_optimizer({"name": "adamw", "weight_decay": 0.3}, model)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


@pytest.mark.curriculum("R02")
def test_weight_decay_shrinks_weights_only() -> None:
    """With zero gradients, decay 0.1 and lr 0.5 multiply a weight by 0.95 and leave the bias."""
    model = nn.Linear(3, 2)
    before = copy.deepcopy(model)
    optimizer = build_optimizer({"name": "sgd", "lr": 0.5, "weight_decay": 0.1}, model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(model.weight, 0.95 * before.weight)
    assert torch.equal(model.bias, before.bias)


REFERENCES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "betas": (0.8, 0.9), "eps": 1e-6}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9, "eps": 1e-6, "momentum": 0.5}),
}


@pytest.mark.parametrize("name", NAMES)
def test_equals_pytorch(name: str) -> None:
    """Every implementation takes, over 20 steps with decay on the weights, the path of PyTorch's plain loop."""
    constructor, settings = REFERENCES[name]
    node = {key: list(v) if isinstance(v, tuple) else v for key, v in settings.items() if key != "nesterov"}
    start = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    inputs = torch.randn(6, 4, dtype=torch.float64)

    def run(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        for _ in range(20):
            optimizer.zero_grad()
            model(inputs).pow(2).mean().backward()
            optimizer.step()
        return [p.detach() for p in model.parameters()]

    reference = copy.deepcopy(start)
    groups = [
        {"params": [reference[0].weight, reference[2].weight], "weight_decay": 0.1},
        {"params": [reference[0].bias, reference[2].bias], "weight_decay": 0.0},
    ]
    expected = run(reference, constructor(groups, foreach=False, **settings))
    implementations = ["foreach", "for_loop"] if name == "rmsprop" else ["fused", "foreach", "for_loop"]
    for implementation in implementations:
        model = copy.deepcopy(start)
        given = {"name": name, "weight_decay": 0.1, "implementation": implementation, **node}
        for got, wanted in zip(run(model, build_optimizer(given, model)), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_state_round_trip(name: str) -> None:
    """Saved after five steps and loaded into a fresh optimizer, the sixth step is bit-identical."""
    model = nn.Linear(4, 3)
    optimizer = build_optimizer({"name": name}, model)
    gradients = [torch.randn(3, 4) for _ in range(6)]
    for gradient in gradients[:5]:
        model.weight.grad, model.bias.grad = gradient.clone(), gradient[:, 0].clone()
        optimizer.step()
    twin = copy.deepcopy(model)
    resumed = build_optimizer({"name": name}, twin)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (twin, resumed)):
        m.weight.grad, m.bias.grad = gradients[5].clone(), gradients[5][:, 0].clone()
        o.step()
    assert torch.equal(model.weight, twin.weight)
    assert torch.equal(model.bias, twin.bias)
    assert all(type(group["lr"]) is float for group in resumed.param_groups)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.cuda
def test_cuda_equals_cpu(name: str) -> None:
    """Ten steps on a GPU end where they end on the CPU."""
    ends = []
    for device in ("cpu", "cuda"):
        model = nn.Linear(1, 4).to(device)
        with torch.no_grad():
            model.weight.fill_(0.5)
            model.bias.fill_(-0.5)
        optimizer = build_optimizer({"name": name}, model)
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.ones(1, 1, device=device)).pow(2).sum().backward()
            optimizer.step()
        ends.append(model.weight.detach().cpu())
    torch.testing.assert_close(*ends)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"name": "adm"}, "optimizer.name: unknown 'adm'.*did you mean 'adam'"),
        ({"name": "adam", "lr": 0}, "optimizer.lr: got 0; expected float > 0"),
        ({"name": "adam", "lr": "fast"}, "optimizer.lr: got 'fast'"),
        ({"name": "adam", "betas": [0.9, 1.0]}, r"optimizer.betas.1: got 1.0"),
        ({"name": "sgd", "weight_decay": -1}, "optimizer.weight_decay: got -1; expected float >= 0"),
        (
            {"name": "sgd", "momentum": 0.9},
            "optimizer.momentum: sgd has no such setting; these have: momentum, nesterov",
        ),
        ({"name": "rmsprop", "implementation": "fused"}, "got 'fused'; expected 'auto' or 'foreach' or 'for_loop'"),
        ({"name": "sgd", "params": []}, "optimizer.params: is set by dlrun itself"),
    ],
)
def test_bad_settings(node: dict, message: str) -> None:
    """A wrong name or value is one line with the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=message) as error:
        build_optimizer(node, nn.Linear(2, 2))
    assert "\n" not in str(error.value)


def test_nothing_to_train() -> None:
    """A model whose parameters are all frozen is refused."""
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer({"name": "sgd"}, nn.Linear(2, 2).requires_grad_(False))


FASTEST = {
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.001, fused=True),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.001, weight_decay=0.01, fused=True),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, fused=True),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, fused=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.001, foreach=True),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range, without_bias_at: int = -1) -> None:
    inputs = torch.randn(steps.stop, 8, 5, generator=torch.Generator().manual_seed(1))
    for i in steps:
        optimizer.zero_grad()
        model(inputs[i]).square().sum().backward()
        if i == without_bias_at:
            model[2].bias.grad = None
        for group in optimizer.param_groups:
            group["lr"] *= 0.9
        optimizer.step()


def two_models() -> tuple[nn.Sequential, nn.Sequential]:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    return model, copy.deepcopy(model)


@pytest.mark.parametrize("without_bias_at", [-1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_bit_for_bit_pytorch(name: str, without_bias_at: int) -> None:
    """Weights and state are those of PyTorch's optimizer, also where a parameter has once no gradient."""
    ours, theirs = two_models()
    optimizer, reference = build_optimizer({"name": name}, ours), FASTEST[name](parameter_groups(theirs))
    train(ours, optimizer, range(7), without_bias_at)
    train(theirs, reference, range(7), without_bias_at)
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))
    states, wanted = optimizer.state_dict()["state"], reference.state_dict()["state"]
    assert states.keys() == wanted.keys()
    for key, state in states.items():
        assert state.keys() == wanted[key].keys()
        assert all(
            torch.equal(torch.as_tensor(state[k]), torch.as_tensor(wanted[key][k]))
            for k in state
            if state[k] is not None
        )


@pytest.mark.parametrize("name", NAMES)
def test_state_goes_to_pytorch_and_back(name: str) -> None:
    """A state dict of ours continues in PyTorch's optimizer and one of PyTorch's in ours, bit for bit."""
    ours, theirs = two_models()
    optimizer, reference = build_optimizer({"name": name}, ours), FASTEST[name](parameter_groups(theirs))
    train(ours, optimizer, range(3))
    train(theirs, reference, range(3))
    first, second = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(reference.state_dict())
    optimizer.load_state_dict(second)
    reference.load_state_dict(first)
    train(ours, optimizer, range(3, 6))
    train(theirs, reference, range(3, 6))
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_a_group_changed_by_hand_counts() -> None:
    """Groups that are updated in one call part ways when one of them gets another learning rate."""
    ours, theirs = two_models()
    optimizer, reference = build_optimizer({"name": "adam"}, ours), FASTEST["adam"](parameter_groups(theirs))
    for model, each in ((ours, optimizer), (theirs, reference)):
        train(model, each, range(2))
        each.param_groups[1]["lr"] = 0.5
        train(model, each, range(2, 5))
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


def test_hooks_and_closures_of_pytorch() -> None:
    """Step hooks are called at each step, and a closure gives its loss."""
    model, _ = two_models()
    optimizer, called = build_optimizer({"name": "adam"}, model), []
    train(model, optimizer, range(2))
    handle = optimizer.register_step_post_hook(lambda *_: called.append(1))
    train(model, optimizer, range(2))
    handle.remove()
    train(model, optimizer, range(2))
    assert len(called) == 2
    assert optimizer.step(lambda: 3.5) == 3.5


def test_no_optimizer_loads_the_compiler() -> None:
    """Building, stepping, saving and loading import no torch._dynamo, which takes a second."""
    import subprocess
    import sys

    code = """
import sys, torch
from torch import nn
from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import build_optimizer
for name in set(OPTIMIZERS.names()) - {"closed_form"}:  # which has no step
    model = nn.Linear(2, 1)
    optimizer = build_optimizer({"name": name}, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 2)).sum().backward()
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_state_of_another_memory_format(name: str) -> None:
    """A state that was saved with contiguous weights goes on, number by number, with weights in channels_last."""

    def convolution(memory_format: torch.memory_format, implementation: str) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=memory_format)
        return model, build_optimizer({"name": name, "implementation": implementation}, model)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        inputs = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        for _ in range(3):
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()

    whole, optimizer = convolution(torch.contiguous_format, "for_loop")
    steps(whole, optimizer)
    saved, weights = state_of(optimizer, settings_of(optimizer)), copy.deepcopy(whole.state_dict())
    model, other = convolution(torch.channels_last, "fused")
    model.load_state_dict(weights)
    for group, settings in zip(saved["param_groups"], settings_of(other), strict=True):
        group.update(settings)  # another implementation, too
    load_state(other, {**copy.deepcopy(saved), "built": settings_of(other)})
    for parameter in model.parameters():
        assert all(
            v.stride() == parameter.stride() for v in other.state[parameter].values() if v.shape == parameter.shape
        )
    steps(whole, optimizer)
    steps(model, other)
    torch.testing.assert_close(model.weight, whole.weight, rtol=1e-5, atol=1e-6)
