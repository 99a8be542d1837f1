"""Non-negative weights."""

from __future__ import annotations

import torch
from torch import nn

from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer, weights


@REGULARIZATION.register("non_negative")
class NonNegative(Regularizer):
    """After each update, negative weights become 0: projected gradient descent on W >= 0. Biases are free."""

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        for _, weight in weights(model):
            weight.clamp_(min=0.0)
