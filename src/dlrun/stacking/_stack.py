"""The parameters and buffers of M models of one shape as stacked tensors, of which those of each model are views.

So evaluation, histograms and checkpoints of a member are the ordinary code on its own model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dlrun.models._dropout import BLOCK, Dropout, keys_of_steps
from dlrun.trainer import Trainer

ALIGNED = 16  # numbers, at which each parameter of each member begins: kernels may round by how memory is aligned


class Stack:
    """Copies what the models hold; `attach` makes them views of it.

    Args:
        trainers: of the members, whose models differ in values only.

    Attributes:
        flat: (M, D), all trainable parameters of a member in a row, those of its optimizer's first group first, with zeros
            between them.
        columns: of each parameter by name, where it lies in a row.
        group_ends: of each of the optimizer's groups, the column after its last one.
        parameters: (M, *shape) by name, views of `flat` that want a gradient.
        others: (M, *shape) by name, buffers and frozen parameters.
    """

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self.seeds = [trainer.seed for trainer in trainers]
        models = [trainer.run.model for trainer in trainers]
        names = {id(parameter): name for name, parameter in models[0].named_parameters()}
        self.columns: dict[str, slice] = {}
        self.group_ends: list[int] = []
        end = 0
        for group in trainers[0].run.optimizer.param_groups:
            for parameter in group["params"]:
                self.columns[names[id(parameter)]] = slice(end, end + parameter.numel())
                end += -(-parameter.numel() // ALIGNED) * ALIGNED
            self.group_ends.append(end)
        tensors = [dict((*model.named_parameters(), *model.named_buffers())) for model in models]
        self.shapes = {name: tensors[0][name].shape for name in self.columns}
        sample = next(iter(models[0].parameters()))
        self.flat = torch.zeros(len(models), end, dtype=sample.dtype, device=sample.device)
        for name in self.columns:
            self.view(self.flat, name).copy_(torch.stack([t[name].detach() for t in tensors]))
        others = [name for name in tensors[0] if name not in self.columns]
        self.others = {name: torch.stack([t[name].detach() for t in tensors]) for name in others}
        self.dropouts = [name for name, _ in varied_dropouts(models)]
        self.keys = torch.zeros(len(self.dropouts), len(models), 2, dtype=torch.int32, device=self.flat.device)
        self._arrange()

    def _arrange(self) -> None:
        """Makes the views of `flat`, of the gradients and of the keys."""
        self.gradient = torch.zeros_like(self.flat)
        self._gradients = [self.view(self.gradient, name) for name in self.columns]
        self.parameters = {name: self.view(self.flat, name).detach().requires_grad_() for name in self.columns}
        self.others.update({f"{name}.key": key for name, key in zip(self.dropouts, self.keys, strict=True)})
        self._blocks: tuple[int, Tensor] = (-1, self.keys)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The columns of a parameter of (M, D) as (M, *shape)."""
        return flat[:, self.columns[name]].view(len(flat), *self.shapes[name])

    def gather(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """The gradients as rows like those of `flat`; until the next call."""
        torch._foreach_copy_(self._gradients, list(gradients.values()))
        return self.gradient

    def attach(self, models: Sequence[nn.Module]) -> None:
        """Makes the tensors of the models views of the stacked ones, of the same values."""
        for row, model in enumerate(models):
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                stacked = self.parameters[name].detach() if name in self.columns else self.others[name]
                tensor.data = stacked[row]

    def fill_keys(self, step: int) -> None:
        """Gives every dropout of every member its key of this step, the one of its lone twin."""
        if not self.dropouts:
            return
        number, row = divmod(step, BLOCK)
        if self._blocks[0] != number:
            names, device = tuple(self.dropouts), self.flat.device
            of_seed = {s: keys_of_steps(s, names, number, 0, device) for s in dict.fromkeys(self.seeds)}
            self._blocks = number, torch.stack([of_seed[seed] for seed in self.seeds], 2)  # (steps, dropouts, M, 2)
        self.keys.copy_(self._blocks[1][row])


def varied_dropouts(models: Sequence[nn.Module]) -> list[tuple[str, float]]:
    """The dropouts that drop anything in any of the models, with the highest rate. A rate of 0 is one of which the mask keeps
    all and the scale is 1, so that it changes no bit."""
    rates: dict[str, float] = {}
    for model in models:
        for name, module in model.named_modules():
            if isinstance(module, Dropout):
                rates[name] = max(rates.get(name, 0.0), module.rate)
    return [(name, rate) for name, rate in rates.items() if rate > 0]


def size_of_member(model: nn.Module) -> int:
    """Bytes of the parameters and buffers of a model."""
    return sum(math.prod(t.shape) * t.element_size() for t in (*model.parameters(), *model.buffers()))
