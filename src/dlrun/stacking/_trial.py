"""A trial step on copies: whether PyTorch can stack these runs, and whether the stack does what the lone runs do."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from dlrun.memory import out_of_memory
from dlrun.models._dropout import set_keys
from dlrun.spec import Batch
from dlrun.stacking._obstacles import NotStackable
from dlrun.stacking._stack import Stack
from dlrun.stacking._step import StackedBatch, StackedStep
from dlrun.streams import Stream
from dlrun.trainer import Trainer

TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
"""By how much the gradient of a member may differ from that of its lone twin, relative to its norm."""


def try_step(trainers: Sequence[Trainer], batch: StackedBatch) -> None:
    """Makes a step of stacked copies and compares the gradients of the first and the last member with those that they get
    alone. Raises NotStackable if it fails or they differ; the members stay as they are."""
    try:
        stack = Stack(trainers)
        stack.fill_keys(0)
        found = StackedStep(trainers, stack)(batch, strict=True)
        for row in dict.fromkeys((0, len(trainers) - 1)):
            alone = _lone_gradient(trainers[row], batch.of(row))
            stacked = torch.cat([gradient[row].reshape(-1) for gradient in found.gradients.values()])
            error, norm = (alone - stacked).norm(), alone.norm()
            if torch.isfinite(norm) and not error <= TOLERANCE[norm.dtype] * norm:
                raise NotStackable(f"stacked gradients differ from those of a lone run (by {float(error / norm):.1g})")
    except NotStackable:
        raise
    except Exception as error:  # PyTorch and a model refuse in many ways
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        what = "the memory of the device does not suffice" if out_of_memory(error) else "the model cannot be stacked"
        raise NotStackable(f"{what} ({reason[:200]})") from error


def _lone_gradient(trainer: Trainer, batch: Batch) -> Tensor:
    """That of the first step of a lone run, by a copy of its model."""
    run = trainer.run
    model = copy.deepcopy(run.model).train()
    set_keys(model, trainer.seed, 0)
    result = run.task(model, batch, Stream(trainer.seed, "task"))
    objective = result.loss
    for _, regularizer in trainer.penalties:
        if (penalty := regularizer.penalty(model, result.outputs)) is not None:
            objective = objective + penalty
    objective.backward()
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    named = dict(model.named_parameters())
    order = [names[id(parameter)] for group in run.optimizer.param_groups for parameter in group["params"]]
    return torch.cat([named[name].grad.reshape(-1) for name in order])  # type: ignore[union-attr]
