"""Gradient descent with momentum."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import Fraction, Implementation, flags
from dlrun.optimizers._lean import MomentumSGD


@OPTIMIZERS.register("momentum")
def momentum(
    params: list[dict[str, Any]],
    *,
    lr: Annotated[float, Gt(0)] = 0.01,
    momentum: Fraction = 0.9,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """Gradient descent with (heavy-ball) momentum: v <- momentum v + g, w <- w - lr v, from v = 0.

    Source: Polyak (1964). Differs: the learning rate multiplies v and is not part of it (v <- momentum v - lr g,
    w <- w + v), which is the same as long as the learning rate is constant.

    Args:
        params: parameter groups; given by the model.
        lr: learning rate; the scheduler multiplies it.
        momentum: share of the previous velocity that is kept.
        weight_decay: added to the gradient as weight_decay w, on weights only.
        implementation: "fused" (one kernel for all tensors), "foreach" or "for_loop"; they differ in rounding. "auto": the
            fastest that was measured.
    """
    return MomentumSGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay, **flags(implementation))
