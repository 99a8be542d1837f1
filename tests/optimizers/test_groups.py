"""Which parameters an optimizer gets, and in which groups."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from dlrun.models import MODELS
from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import build_optimizer, parameter_groups
from dlrun.registry import ConfigError
from dlrun.schedulers._build import build_scheduler


class Net(nn.Module):
    """Two dense layers with layer normalisation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.first(x))))


def names(model: nn.Module, group: dict) -> list[str]:
    of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [of[id(parameter)] for parameter in group["params"]]


def test_two_groups_without_factors() -> None:
    """Weights decay, biases and norm layers do not; nothing else is in the groups."""
    model = Net()
    decay, rest = parameter_groups(model)
    assert (names(model, decay), names(model, rest)) == (
        ["first.weight", "head.weight"],
        ["first.bias", "norm.weight", "norm.bias", "head.bias"],
    )
    assert (set(decay), rest) == ({"params"}, {"params": rest["params"], "weight_decay": 0.0})
    assert [g.keys() for g in parameter_groups(model, {}, 0.1)] == [decay.keys(), rest.keys()]


def test_positions_do_not_decay() -> None:
    """A transformer's learned positions are in the group without decay, beside the biases."""
    model = MODELS.build({"name": "transformer", "layers": 1}, input_shape=(1, 4, 4), num_outputs=2)
    decay, rest = parameter_groups(model)
    assert "positions" in names(model, rest)
    assert set(names(model, decay)) == {n for n, p in model.named_parameters() if p.ndim == 2} - {"positions"}


def test_groups_of_each_factor() -> None:
    """Parameters of one factor are together, those of factor 1 first; frozen ones are in none."""
    model = Net()
    model.norm.weight.requires_grad_(False)
    factors = {"first.weight": 0.1, "first.bias": 0.1, "head.bias": 3.0}
    groups = parameter_groups(model, factors, 0.5)
    assert [(names(model, g), g.get("lr"), g.get("weight_decay")) for g in groups] == [
        (["head.weight"], None, None),
        (["norm.bias"], None, 0.0),
        (["first.weight"], 0.5 * 0.1, None),
        (["first.bias"], 0.5 * 0.1, 0.0),
        (["head.bias"], 0.5 * 3.0, 0.0),
    ]


@pytest.mark.curriculum("X18")
@pytest.mark.parametrize("name", ["adam", "adamw", "momentum", "nesterov", "rmsprop", "sgd"])
@pytest.mark.parametrize("implementation", ["fused", "foreach"])
def test_learning_rates_by_layer_equal_pytorchs_groups(name: str, implementation: str) -> None:
    """30 updates under a warm-up and a cosine give bit for bit what torch.optim gives with groups written by hand, whose
    learning rates the schedule multiplies alike."""
    if implementation not in str(OPTIMIZERS.settings(name)["implementation"].annotation):
        pytest.skip(f"{name} has no {implementation} implementation")
    ours, theirs = Net(), None
    theirs = copy.deepcopy(ours)
    node = {"name": name, "lr": 0.05, "weight_decay": 0.01, "implementation": implementation}
    optimizer = build_optimizer(node, ours, {"first.weight": 0.1, "first.bias": 0.1})
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    bare = {k: v for k, v in optimizer.defaults.items() if k not in ("lr", "weight_decay")}
    reference = kinds.get(name, torch.optim.SGD)(
        [
            {"params": [theirs.head.weight], "lr": 0.05, "weight_decay": 0.01},
            {"params": [theirs.norm.weight, theirs.norm.bias, theirs.head.bias], "lr": 0.05, "weight_decay": 0},
            {"params": [theirs.first.weight], "lr": 0.05 * 0.1, "weight_decay": 0.01},
            {"params": [theirs.first.bias], "lr": 0.05 * 0.1, "weight_decay": 0},
        ],
        **{k: v for k, v in bare.items() if k not in ("decoupled_weight_decay",)},
    )
    scheduler = build_scheduler({"name": "cosine", "warmup_epochs": 1.0}, 30, 10)
    built = [group["lr"] for group in optimizer.param_groups]
    x, y = torch.randn(16, 3), torch.randn(16, 2)
    for step in range(30):
        for model, chosen in ((ours, optimizer), (theirs, reference)):
            for group, lr in zip(chosen.param_groups, built, strict=True):
                group["lr"] = lr * scheduler.factor(step)
            chosen.zero_grad()
            (model(x) - y).square().mean().backward()
            chosen.step()
    for (key, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(parameter, other), key


def test_no_learning_rate_to_multiply() -> None:
    """An optimizer without one is refused, and so is a model without a trainable parameter."""

    @OPTIMIZERS.register("rateless")
    def rateless(params: list, *, strength: float = 1.0) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=strength)

    try:
        with pytest.raises(ConfigError, match=r"^transfer\.lr_scale: optimizer 'rateless' has no learning rate"):
            build_optimizer({"name": "rateless"}, Net(), {"head.bias": 2.0})
    finally:
        OPTIMIZERS._entries.pop("rateless")
    with pytest.raises(ConfigError, match=r"^optimizer: Net has no trainable parameter"):
        build_optimizer({"name": "sgd"}, Net().requires_grad_(False))
