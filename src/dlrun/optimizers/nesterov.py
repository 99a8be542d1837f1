"""Gradient descent with Nesterov momentum."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import Implementation, flags
from dlrun.optimizers._lean import MomentumSGD


@OPTIMIZERS.register("nesterov")
def nesterov(
    params: list[dict[str, Any]],
    *,
    lr: Annotated[float, Gt(0)] = 0.01,
    momentum: Annotated[float, Gt(0), Lt(1)] = 0.9,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """Gradient descent with Nesterov momentum: v <- momentum v + g, w <- w - lr (g + momentum v), from v = 0.

    Source: Sutskever et al. (2013), section 2. Differs: written, as PyTorch does, for the point at which the gradient
    is taken.

    Args:
        params: parameter groups; given by the model.
        lr: learning rate; the scheduler multiplies it.
        momentum: share of the previous velocity that is kept.
        weight_decay: added to the gradient as weight_decay w, on weights only.
        implementation: "fused" (one kernel for all tensors), "foreach" or "for_loop"; they differ in rounding. "auto": the
            fastest that was measured.
    """
    return MomentumSGD(
        params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True, **flags(implementation)
    )
