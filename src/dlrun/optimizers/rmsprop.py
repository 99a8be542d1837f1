"""RMSprop."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._groups import Fraction
from dlrun.optimizers._lean import RMSprop


@OPTIMIZERS.register("rmsprop")
def rmsprop(
    params: list[dict[str, Any]],
    *,
    lr: Annotated[float, Gt(0)] = 1e-3,
    alpha: Fraction = 0.99,
    eps: Annotated[float, Gt(0)] = 1e-8,
    momentum: Fraction = 0.0,
    weight_decay: Annotated[float, Ge(0)] = 0.0,
    implementation: Literal["auto", "foreach", "for_loop"] = "auto",
) -> torch.optim.Optimizer:
    """RMSprop: the gradient divided by the root of a running mean of its square.

    Source: Tieleman and Hinton (2012), Coursera lecture 6.5. Differs: eps is added to the root.

    Args:
        params: parameter groups; given by the model.
        lr: learning rate; the scheduler multiplies it.
        alpha: decay rate of the running mean of the squared gradient.
        eps: added to the root of the mean square, against division by zero.
        momentum: share of the previous velocity that is kept; 0: none.
        weight_decay: added to the gradient as weight_decay w, on weights only.
        implementation: "foreach" (all tensors at once) or "for_loop"; "auto" is foreach, for PyTorch has no fused RMSprop.
    """
    return RMSprop(
        params,
        lr=lr,
        alpha=alpha,
        eps=eps,
        momentum=momentum,
        weight_decay=weight_decay,
        foreach=implementation != "for_loop",
    )
