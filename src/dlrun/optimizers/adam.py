"""Adam."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import Fraction, Implementation, flags
from dlrun.optimizers._lean import Adam


@OPTIMIZERS.register("adam")
def adam(
    params: list[dict[str, Any]],
    *,
    lr: Annotated[float, Gt(0)] = 1e-3,
    betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    eps: Annotated[float, Gt(0)] = 1e-8,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """Adam: steps of about lr in every parameter, from running means of the gradient and of its square.

    Source: Kingma and Ba (2015), algorithm 1.

    Args:
        params: parameter groups; given by the model.
        lr: learning rate; the scheduler multiplies it.
        betas: decay rates of the running means of the gradient and of its square.
        eps: added to the root of the mean square, against division by zero.
        weight_decay: added to the gradient as weight_decay w, on weights only (`adamw` decays apart from the gradient).
        implementation: "fused" (one kernel for all tensors), "foreach" or "for_loop"; they differ in rounding. "auto": the
            fastest that was measured.
    """
    return Adam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, **flags(implementation))
