"""Averages of the weights over the updates, to evaluate and to keep in place of the last ones.

    average.update(model)            after each update
    with average.swap(model):        evaluate, or save the best checkpoint

Buffers (batch-norm statistics) are not averaged: the model's own are used, unless `refresh_batch_norm` computed better
ones for the averaged weights and `keep_buffers` kept them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlrun.registry import ConfigError


class WeightAverage:
    """Base: a running average of the trainable parameters, average <- average + share (weights - average).

    Args:
        model: its parameters at construction are not part of the average.
        start: number of updates that are left out at the beginning.

    Attributes:
        updates: calls of `update`. count: those of them that went into the average.
    """

    def __init__(self, model: nn.Module, start: int = 0) -> None:
        self.start = start
        self.updates = 0
        self.average = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        self.buffers: dict[str, Tensor] = {}

    @property
    def count(self) -> int:
        return max(0, self.updates - self.start)

    @property
    def started(self) -> bool:
        """Whether there is anything in the average yet; before that, `swap` leaves the weights alone."""
        return self.count > 0

    def share(self, count: int) -> float:
        """The share of the newest weights in the average of `count` of them; 1 for count 1."""
        raise NotImplementedError

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes the weights after an update into the average."""
        self.updates += 1
        if self.started:
            torch._foreach_lerp_(list(self.average.values()), self._parameters(model), self.share(self.count))

    @contextmanager
    def swap(self, model: nn.Module) -> Iterator[None]:
        """The averaged weights (and kept buffers) in the model during the block; afterwards the model as it was."""
        if not self.started:
            yield
            return
        parameters, buffers = self._parameters(model), list(model.buffers())
        saved = [tensor.detach().clone() for tensor in [*parameters, *buffers]]
        try:
            self.apply(model)
            yield
        finally:
            _copy([*parameters, *buffers], saved)

    def apply(self, model: nn.Module) -> None:
        """Writes the averaged weights (and kept buffers) into the model for good, once there are any."""
        if self.started:
            named = dict(model.named_buffers())
            _copy(self._parameters(model), list(self.average.values()))
            _copy([named[name] for name in self.buffers], list(self.buffers.values()))

    def keep_buffers(self, model: nn.Module) -> None:
        """Keeps a copy of the model's buffers: the statistics that belong to the averaged weights."""
        if self.started:
            saved = model.state_dict()  # not the keys of dropout, say, which belong to a step
            self.buffers = {n: buffer.detach().clone() for n, buffer in model.named_buffers() if n in saved}

    def state_dict(self) -> dict[str, Any]:
        """The average as plain containers of tensors (not copies)."""
        return {"updates": self.updates, "average": dict(self.average), "buffers": dict(self.buffers)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what `state_dict` gave. Raises ConfigError if it is of another model."""
        if {n: t.shape for n, t in state["average"].items()} != {n: t.shape for n, t in self.average.items()}:
            raise ConfigError("checkpoint: the averaged weights are of another model")
        self.updates = int(state["updates"])
        _copy(list(self.average.values()), [state["average"][name] for name in self.average])
        device = next((tensor.device for tensor in self.average.values()), None)
        self.buffers = {name: tensor.detach().clone().to(device) for name, tensor in state["buffers"].items()}

    def _parameters(self, model: nn.Module) -> list[Tensor]:
        named = dict(model.named_parameters())
        return [named[name] for name in self.average]


class ExponentialAverage(WeightAverage):
    """Exponential moving average: the weights k updates ago count in proportion to decay ** k.

    The proportions are divided by their sum, so that the average is one of trained weights from the first update on and
    the initial weights have no part in it (the bias correction of Adam, applied to weights).

    Args:
        model: the model to average.
        decay: between 0 and 1; the average reaches back about 1 / (1 - decay) updates.
        start: number of updates that are left out at the beginning.
    """

    def __init__(self, model: nn.Module, decay: float, start: int = 0) -> None:
        super().__init__(model, start)
        self.decay = decay

    def share(self, count: int) -> float:
        return (1 - self.decay) / (1 - self.decay**count)


class ArithmeticAverage(WeightAverage):
    """Arithmetic mean of the weights after every update from `start` on: averaged stochastic gradient descent.

    Source: Polyak and Juditsky (1992); Izmailov et al. (2018), algorithm 1. Differs from the latter: averages after
    every update, not once per epoch, and leaves the learning rate to the scheduler.

    Args:
        model: the model to average.
        start: number of updates that are left out at the beginning.
    """

    def share(self, count: int) -> float:
        return 1 / count


def build_average(
    model: nn.Module, ema_decay: float | None, swa_start: float | None, total_steps: int
) -> WeightAverage | None:
    """The average that `trainer.ema_decay` or `trainer.swa_start` (a share of the run) asks for; None for neither.
    Raises ConfigError for both."""
    if ema_decay is not None and swa_start is not None:
        raise ConfigError("trainer.swa_start: cannot be combined with trainer.ema_decay; set one of them to null")
    if ema_decay is not None:
        return ExponentialAverage(model, ema_decay)
    return ArithmeticAverage(model, int(swa_start * total_steps)) if swa_start is not None else None


@torch.no_grad()
def refresh_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Recomputes the running statistics of batch-norm layers as means over `batches` of inputs, each counting the same.

    Everything else, dropout included, is in evaluation mode, as it will be when the statistics are used. Frozen
    layers keep theirs. A model without running statistics is left alone, and no batch is read.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    layers = [layer for layer in layers if layer.weight is None or layer.weight.requires_grad]
    if not layers:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # cumulative mean
        layer.train()
    try:
        for inputs in batches:
            model(inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def _copy(into: list[Tensor], values: list[Tensor]) -> None:
    for target, value in zip(into, values, strict=True):
        target.copy_(value)
