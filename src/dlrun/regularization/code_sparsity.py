"""A sparse code in autoencoders."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge
from torch import Tensor, nn

from dlrun.registry import ConfigError
from dlrun.regularization import REGULARIZATION
from dlrun.regularization._base import Regularizer


@REGULARIZATION.register("code_sparsity")
class CodeSparsity(Regularizer):
    """strength times the absolute values of an autoencoder's code, summed over the units and averaged over the samples.

    Args:
        strength: factor of the penalty in the objective.

    Raises:
        ConfigError: for a model without a code.
    """

    def __init__(self, *, strength: Annotated[float, Ge(0)] = 1e-3) -> None:
        self.strength = strength

    def check_model(self, model: nn.Module) -> None:
        if not hasattr(model, "encode"):
            raise ConfigError(
                f"regularization.code_sparsity: {type(model).__name__} has no code; use it with model=autoencoder"
            )

    def penalty(self, model: nn.Module, outputs: Tensor) -> Tensor | None:
        self.check_model(model)
        code: Tensor = model.code  # type: ignore[assignment]  # that of the latest forward pass
        return self.strength * code.abs().sum() / code.shape[0]
