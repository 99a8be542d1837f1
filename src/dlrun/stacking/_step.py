"""Forward and backward of M members at once: one model, mapped over stacked parameters, buffers and samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dlrun.spec import Batch, StepResult
from dlrun.stacking._obstacles import NotStackable
from dlrun.stacking._stack import Stack, varied_dropouts
from dlrun.streams import Stream
from dlrun.trainer import Trainer

VARIED = ("label_smoothing", "strength")
"""Attributes of losses and regularizers that may be tensors, of one value for each member."""


class StackedBatch(NamedTuple):
    """A minibatch of each member: `inputs` (M, B, ...), `targets` and `indices`, of which `of` gives a member's own; if all
    members see the same samples, they lie there once, without the first axis."""

    inputs: Tensor
    targets: Tensor
    indices: Tensor
    shared: bool

    @property
    def size(self) -> int:
        return self.indices.shape[-1]

    def of(self, row: int) -> Batch:
        """The minibatch of one member."""
        parts = self.inputs, self.targets, self.indices
        return Batch(*parts) if self.shared else Batch(*(part[row] for part in parts))


class StackedResult(NamedTuple):
    """`loss` and `objective` (M,), raw `outputs` (M, B, ...) and `targets` (M, B, ...), further scalars to log (M,) by name,
    all detached; `gradients` (M, *shape) by parameter."""

    loss: Tensor
    objective: Tensor
    outputs: Tensor
    targets: Tensor
    parts: dict[str, Tensor]
    gradients: dict[str, Tensor]

    def of(self, row: int) -> StepResult:
        """The result of one member."""
        parts = {name: value[row] for name, value in self.parts.items()}
        return StepResult(self.loss[row], self.outputs[row], self.targets[row], parts)


class StackedStep:
    """Losses and gradients of all members of `stack`, for values that differ in loss and penalties too."""

    def __init__(self, trainers: Sequence[Trainer], stack: Stack) -> None:
        first = trainers[0]
        model = copy.deepcopy(first.run.model).to("meta").train()
        for name, rate in varied_dropouts([trainer.run.model for trainer in trainers]):
            model.get_submodule(name).rate = rate  # type: ignore[assignment]  # so that none is skipped
        task = copy.copy(first.run.task)
        task.loss = copy.copy(first.run.loss)
        penalties = [(name, copy.copy(regularizer)) for name, regularizer in first.penalties]
        self.stack, self.trainers = stack, list(trainers)
        self.owners: list[Any] = [task.loss, *(regularizer for _, regularizer in penalties)]
        self.objective = _Objective(model, task, penalties)
        self._take_values()

    def _take_values(self) -> None:
        """The values in which losses and penalties differ: (M,) each."""
        owners = [[t.run.loss, *(penalty for _, penalty in t.penalties)] for t in self.trainers]
        self.values: dict[str, Tensor] = {}
        self.places: dict[str, tuple[Any, str]] = {}
        for number, owner in enumerate(self.owners):
            for name in VARIED:
                found = [getattr(each[number], name, None) for each in owners]
                if len(set(found)) > 1:
                    key = f"{number}.{name}"
                    flat = self.stack.flat
                    self.values[key] = torch.tensor(found, dtype=torch.float64).to(flat.device, flat.dtype)
                    self.places[key] = owner, name
                elif found[0] is not None:
                    setattr(owner, name, found[0])

    def __call__(self, batch: StackedBatch, strict: bool = False) -> StackedResult:
        """One forward and backward pass; batch-norm statistics are updated. `strict`: raises NotStackable for a buffer that
        the forward pass replaces, of which nothing would be kept."""
        stack, own = self.stack, None if batch.shared else 0
        mapped = torch.vmap(self._one, in_dims=(0, 0, 0, own, own, own, None))
        objective, (loss, outputs, targets, parts) = mapped(
            stack.parameters, stack.others, self.values, *batch[:3], strict
        )
        gradients = torch.autograd.grad(objective.sum(), list(stack.parameters.values()))
        return StackedResult(
            loss.detach(),
            objective.detach(),
            outputs.detach(),
            targets.detach(),
            {name: part.detach() for name, part in parts.items()},
            dict(zip(stack.parameters, gradients, strict=True)),
        )

    def _one(
        self,
        parameters: dict[str, Tensor],
        others: dict[str, Tensor],
        values: dict[str, Tensor],
        inputs: Tensor,
        targets: Tensor,
        indices: Tensor,
        strict: bool,
    ) -> tuple[Tensor, Any]:
        """What is mapped over the members."""
        for key, value in values.items():
            setattr(*self.places[key], value)
        given = {f"model.{name}": tensor for name, tensor in {**parameters, **others}.items()}
        used = dict(given)
        found = functional_call(self.objective, used, (inputs, targets, indices))
        if strict and (replaced := [name for name in given if used[name] is not given[name]]):
            raise NotStackable(f"the model replaces its buffer '{replaced[0].removeprefix('model.')}' at each step")
        return found


class _Objective(nn.Module):
    """The objective of a member as a module, so that all that looks into the model, as penalties do, sees its tensors."""

    def __init__(self, model: nn.Module, task: Any, penalties: Sequence[tuple[str, Any]]) -> None:
        super().__init__()
        self.model, self.task, self.penalties = model, task, penalties

    def forward(self, inputs: Tensor, targets: Tensor, indices: Tensor) -> tuple[Tensor, Any]:
        result = self.task(self.model, Batch(inputs, targets, indices), _NoStream(0, "task"))
        objective, parts = result.loss, {name: torch.as_tensor(value) for name, value in result.parts.items()}
        for name, regularizer in self.penalties:
            penalty = regularizer.penalty(self.model, result.outputs)
            if penalty is not None:
                parts[f"penalty/{name}"] = penalty
                objective = objective + penalty
        return objective, (result.loss, result.outputs, result.targets, parts)


class _NoStream(Stream):
    """A stream that nobody may draw from: each member has its own."""

    def key(self) -> tuple[int, int]:
        raise NotStackable("the task draws random numbers")
