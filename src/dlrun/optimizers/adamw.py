"""Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import Fraction, Implementation, flags
from dlrun.optimizers._lean import AdamW


@OPTIMIZERS.register("adamw")
def adamw(
    params: list[dict[str, Any]],
    *,
    lr: Annotated[float, Gt(0)] = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.01,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay: weights also shrink by the factor 1 - lr weight_decay at each update.

    Source: Loshchilov and Hutter (2019), algorithm 2. Differs: the learning rate, not only the schedule, multiplies the
    decay; biases and norm layers do not decay.

    Args:
        params: parameter groups; given by the model.
        lr: learning rate; the scheduler multiplies it.
        betas: decay rates of the running means of the gradient and of its square.
        eps: added to the root of the mean square, against division by zero.
        weight_decay: decay of the weights, not scaled by the running means.
        implementation: "fused" (one kernel for all tensors), "foreach" or "for_loop"; they differ in rounding. "auto": the
            fastest that was measured.
    """
    return AdamW(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **flags(implementation))
