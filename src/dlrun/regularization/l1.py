"""The L1 penalty."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer, weights


@REGULARIZATION.register("l1")
class L1(Regularizer):
    """strength times the sum of the absolute values of all weights; its (sub)gradient is sign(W), 0 at 0.

    The prior is a Laplace distribution. A gradient step makes weights small but seldom exactly 0.

    Args:
        strength: factor of the penalty in the objective.
    """

    def __init__(self, *, strength: Annotated[float, Ge(0)] = 1e-5) -> None:
        self.strength = strength

    def penalty(self, model: nn.Module, outputs: Tensor) -> Tensor | None:
        sums = [weight.abs().sum() for _, weight in weights(model)]
        return self.strength * sum(sums[1:], sums[0]) if sums else None
