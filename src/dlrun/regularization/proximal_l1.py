"""The L1 penalty by proximal steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import weights
from dlrun.regularization.l1 import L1


@REGULARIZATION.register("proximal_l1")
class ProximalL1(L1):
    """The penalty of `l1` minimised by a proximal step after each update instead of by its subgradient: weights move by
    lr strength towards 0 and stop there, so that many are exactly 0.

    With optimizer=sgd this is the iterative shrinkage-thresholding algorithm; other optimizers shrink alike, apart from the
    gradient, as `adamw` decays. The penalty is part of the objective that is reported.
    Source: Beck and Teboulle (2009), equation 1.4.

    Args:
        strength: factor of the penalty in the objective.
    """

    def penalty(self, model: nn.Module, outputs: Tensor) -> Tensor | None:
        with torch.no_grad():  # reported only: its gradient is what the proximal step stands for
            return super().penalty(model, outputs)

    @torch.no_grad()
    def proximal(self, model: nn.Module, rates: Mapping[int, float | Tensor]) -> None:
        for _, weight in weights(model):
            weight.copy_(weight.sign() * (weight.abs() - self.strength * rates[id(weight)]).relu())
