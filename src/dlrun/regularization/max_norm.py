"""The max-norm constraint."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Gt
from torch import nn

from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer, weights

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@REGULARIZATION.register("max_norm")
class MaxNorm(Regularizer):
    """After each update, the incoming weights of every unit are scaled down to an L2 norm of at most `limit`.

    A unit is a row of a dense layer or a filter of a convolution; norms below the limit stay as they are.

    Source: Srivastava et al. (2014), section 5.1. Differs: the output layer is constrained too.

    Args:
        limit: the largest norm allowed.
    """

    def __init__(self, *, limit: Annotated[float, Gt(0)] = 3.0) -> None:
        self.limit = limit

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        for name, weight in weights(model):
            layer = model.get_submodule(name.rpartition(".")[0])
            if isinstance(
                layer, _TRANSPOSED
            ):  # (inputs, units / groups, ...): a unit's weights lie along a group's inputs
                inputs, units, *kernel = weight.shape
                grouped = weight.view(layer.groups, inputs // layer.groups, units, *kernel)
                self._limit(grouped, [1, *range(3, grouped.ndim)])
            else:  # (units, inputs, ...)
                self._limit(weight, list(range(1, weight.ndim)))

    def _limit(self, weight: torch.Tensor, incoming: list[int]) -> None:
        norms = torch.linalg.vector_norm(weight, dim=incoming, keepdim=True)
        weight.mul_((self.limit / norms).clamp(max=1.0))
