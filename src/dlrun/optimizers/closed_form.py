"""The exact solution, for models that have one."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from dlrun.optimizers import OPTIMIZERS
from dlrun.optimizers._whole_set import WholeSet


@OPTIMIZERS.register("closed_form")
class ClosedForm(WholeSet):
    """The exact solution in one update on the whole training set: least squares for model=linear with loss=l2 (with l2
    regularization: ridge regression), class means and their shared covariance for model=gaussian_classifier.

    It needs no learning rate, no schedule and one epoch, whatever trainer.epochs and data.batch_size say. What is reported of
    the training set, the gradient's norm included, is that of the solution.

    Source: for least squares, Bishop (2006), sections 3.1.1 and 3.1.4.

    Args:
        params: parameter groups; given by the model.
        weight_decay: as elsewhere: adds weight_decay / 2 times the squares of the weights to the objective; equals
            `regularization=l2` of half this strength.
    """

    name: ClassVar[str] = "closed_form"
    method: ClassVar[str] = "solve"
    once: ClassVar[bool] = True

    def __init__(self, params: list[dict[str, Any]], *, weight_decay: Annotated[float, Ge(0)] = 0.0) -> None:
        super().__init__(params, weight_decay)

    def update_model(self, model: nn.Module, inputs: Tensor, targets: Tensor, decay: float) -> None:
        model.solve(inputs, targets, decay)  # type: ignore[operator]
