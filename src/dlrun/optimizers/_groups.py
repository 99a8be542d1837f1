"""Which parameters an optimizer updates, on which of them weight decay acts, and how the optimizer is built."""

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


def build_optimizer(node: Mapping[str, Any], model: nn.Module) -> Optimizer:
    """The optimizer of `node` over the trainable parameters of `model`. Raises ConfigError if there are none."""
    groups = parameter_groups(model)
    if not groups:
        raise ConfigError(f"optimizer: {type(model).__name__} has no trainable parameter; unfreeze some of them")
    optimizer: Optimizer = OPTIMIZERS.build(node, params=groups)
    return optimizer


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The trainable parameters in at most two groups: weights, which decay, and the rest with `weight_decay` 0.

    The rest are biases and everything in norm layers. Frozen parameters are left out, shared ones appear once.
    """
    decay = [parameter for _, parameter in weights(model)]
    decaying = {id(parameter) for parameter in decay}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in decaying]
    groups: list[dict[str, Any]] = [{"params": decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def flags(implementation: str) -> dict[str, Any]:
    """The arguments that select one of the implementations of a PyTorch optimizer; `auto`, where nobody has resolved it, is
    fused."""
    return {"fused": True} if implementation in ("auto", "fused") else {"foreach": implementation == "foreach"}
