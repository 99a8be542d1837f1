"""Which parameters an optimizer updates, on which of them weight decay acts, how fast, and how the optimizer is built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Lt
from torch import nn
from torch.optim import Optimizer

from dlrun.optimizers import OPTIMIZERS
from dlrun.registry import ConfigError
from dlrun.regularization._base import weights

Implementation = Literal["auto", "fused", "foreach", "for_loop"]
Fraction = Annotated[float, Ge(0), Lt(1)]


def build_optimizer(node: Mapping[str, Any], model: nn.Module, factors: Mapping[str, float] | None = None) -> Optimizer:
    """The optimizer of `node` over the trainable parameters of `model`.

    `factors`: of the learning rate, by name of parameter; 1 for those that are not in it.

    Raises ConfigError if there is no trainable parameter, or no learning rate to multiply.
    """
    lr = OPTIMIZERS.check(node).get("lr") if factors else None
    if factors and not isinstance(lr, float):
        raise ConfigError(f"transfer.lr_scale: optimizer '{node['name']}' has no learning rate; set it to null")
    groups = parameter_groups(model, factors or {}, lr)
    if not groups:
        raise ConfigError(f"optimizer: {type(model).__name__} has no trainable parameter; unfreeze some of them")
    optimizer: Optimizer = OPTIMIZERS.build(node, params=groups)
    return optimizer


def parameter_groups(
    model: nn.Module, factors: Mapping[str, float] | None = None, lr: float | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters in at most two groups: weights, which decay, and the rest with `weight_decay` 0.

    The rest are biases, positions and everything in norm layers. Frozen parameters are left out, shared ones appear once. With
    `factors` (see `build_optimizer`) of the learning rate `lr` there are at most two groups for each factor, those of factor 1
    first.
    """
    decaying = {id(parameter) for _, parameter in weights(model)}
    factor_of = {id(p): (factors or {}).get(name, 1.0) for name, p in model.named_parameters()}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in decaying]
    groups: list[dict[str, Any]] = []
    for factor in dict.fromkeys([1.0, *(factors or {}).values()]):
        own = {} if factor == 1.0 or lr is None else {"lr": lr * factor}
        groups.append({"params": [p for _, p in weights(model) if factor_of[id(p)] == factor], **own})
        groups.append({"params": [p for p in rest if factor_of[id(p)] == factor], "weight_decay": 0.0, **own})
    return [group for group in groups if group["params"]]


def flags(implementation: str) -> dict[str, Any]:
    """The arguments that select one of the implementations of a PyTorch optimizer; `auto`, where nobody has resolved it, is
    fused."""
    return {"fused": True} if implementation in ("auto", "fused") else {"foreach": implementation == "foreach"}
