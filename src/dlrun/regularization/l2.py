"""The L2 penalty."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer, weights


@REGULARIZATION.register("l2")
class L2(Regularizer):
    """strength times the sum of the squares of all weights; its gradient is 2 strength W.

    The prior is a normal distribution. With plain gradient descent it equals `optimizer.weight_decay` of twice the
    strength, but as a part of the objective it is logged.

    Args:
        strength: factor of the penalty in the objective.
    """

    def __init__(self, *, strength: Annotated[float, Ge(0)] = 1e-4) -> None:
        self.strength = strength

    def penalty(self, model: nn.Module, outputs: Tensor) -> Tensor | None:
        sums = [(weight * weight).sum() for _, weight in weights(model)]
        return self.strength * sum(sums[1:], sums[0]) if sums else None
