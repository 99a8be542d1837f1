"""The loops that a careful person writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmark.pace import Pace
from benchmark.workload import EVALUATION_BATCH, LEARNING_RATE, Problem, Workload

Batches = Iterable[Any]


def bare(workload: Workload, pace: Pace) -> None:
    """Tensors in memory, an index per batch, Adam as PyTorch chooses its implementation."""
    problem = Problem.make(workload)
    loop(problem.model, workload, pace, Gathered(problem), held_out(problem), {})


def bare_fused(workload: Workload, pace: Pace) -> None:
    """The same with `Adam(fused=True)`."""
    problem = Problem.make(workload)
    loop(problem.model, workload, pace, Gathered(problem), held_out(problem), {"fused": True})


def loader(workload: Workload, pace: Pace) -> None:
    """TensorDataset and DataLoader in the same process, with `Adam(fused=True)`."""
    problem = Problem.make(workload)
    loop(problem.model, workload, pace, *loaders(problem), {"fused": True})


def loaders(problem: Problem) -> tuple[Any, Any]:
    """DataLoaders of the training and validation tensors."""
    from torch.utils.data import DataLoader, TensorDataset

    train = TensorDataset(problem.inputs, problem.targets)
    val = TensorDataset(problem.val_inputs, problem.val_targets)
    return DataLoader(train, problem.workload.batch, shuffle=True), DataLoader(val, EVALUATION_BATCH)


class Gathered:
    """The training batches of an epoch: a permutation, and an index per batch."""

    def __init__(self, problem: Problem) -> None:
        self.inputs, self.targets, self.batch = problem.inputs, problem.targets, problem.workload.batch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.targets), device=self.targets.device)
        for i in range(0, len(order), self.batch):
            rows = order[i : i + self.batch]
            yield self.inputs[rows], self.targets[rows]


def held_out(problem: Problem) -> list[tuple[Tensor, Tensor]]:
    """The validation batches."""
    inputs, targets = problem.val_inputs.split(EVALUATION_BATCH), problem.val_targets.split(EVALUATION_BATCH)
    return list(zip(inputs, targets, strict=True))


def loop(model: nn.Module, workload: Workload, pace: Pace, train: Batches, val: Batches, adam: dict[str, Any]) -> None:
    """Trains and validates epoch by epoch; the running loss is read once an epoch."""
    device = torch.device(workload.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **adam)
    for epoch in range(workload.epochs):
        pace.epoch_start()
        model.train()
        total, batches = torch.zeros((), device=device), 0
        for inputs, targets in train:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs.to(device)), targets.to(device))
            loss.backward()
            optimizer.step()
            total += loss.detach()
            batches += 1
        pace.train_end()
        loss_, accuracy = validate(model, val, device)
        pace.validated(loss_, accuracy)
        print(f"epoch {epoch}: train {total.item() / batches:.4f}, validation {loss_:.4f}, {accuracy:.4f}")
    pace.epoch_start()


@torch.no_grad()
def validate(model: nn.Module, batches: Batches, device: torch.device) -> tuple[float, float]:
    """(mean loss, accuracy) in evaluation mode."""
    model.eval()
    loss, right, count = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for inputs, targets in batches:
        inputs, targets = inputs.to(device), targets.to(device)
        outputs = model(inputs)
        loss += F.cross_entropy(outputs, targets, reduction="sum")
        right += (outputs.argmax(1) == targets).sum()
        count += len(targets)
    return loss.item() / count, right.item() / count
