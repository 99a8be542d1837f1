"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import Implementation, flags
from dlrun.optimizers._lean import SGD


@OPTIMIZERS.register("sgd")
def sgd(
    params: list[dict[str, Any]],
    *,
    lr: Annotated[float, Gt(0)] = 0.1,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """Stochastic gradient descent: w <- w - lr (g + weight_decay w), with g the mean gradient of the minibatch.

    Args:
        params: parameter groups; given by the model.
        lr: learning rate; the scheduler multiplies it.
        weight_decay: added to the gradient as weight_decay w, on weights only; equals `regularization=l2` of half this
            strength.
        implementation: "fused" (one kernel for all tensors), "foreach" or "for_loop"; they differ in rounding. "auto": the
            fastest that was measured.
    """
    return SGD(params, lr=lr, weight_decay=weight_decay, **flags(implementation))
