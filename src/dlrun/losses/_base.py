"""What a loss is: a likelihood of the target, whose parameters the network gives as raw outputs."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.distributions import Distribution

from dlrun.registry import ConfigError
from dlrun.spec import TargetKind, TargetSpec


class Loss:
    """The recipe of the courses: choose a distribution of the target, let the network give its parameters, take the
    negative log-likelihood. Losses see raw outputs, never activated ones.

    Args:
        target: what is predicted; refused if its kind is not among `kinds`.

    Attributes:
        name: the registry name, for messages.
        kinds: the target kinds this loss accepts.
        largest: the size of the largest target it accepts.
        num_outputs: size of the raw output the network must give.
        reduction: of `loss.reduction`, for the trainer; the loss itself is a mean over the samples in any case.
    """

    name: ClassVar[str]
    kinds: ClassVar[frozenset[TargetKind]]
    largest: ClassVar[float] = math.inf
    reduction: Literal["mean", "sum"] = "mean"

    def __init__(self, target: TargetSpec) -> None:
        if target.kind not in self.kinds:
            raise ConfigError(f"loss: {self.name} does not fit a target of kind '{target.kind}'")
        self.target = target
        self.num_outputs = self.count_outputs(target)

    def count_outputs(self, target: TargetSpec) -> int:
        """How many raw outputs the network must have for `target`."""
        return target.size

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample, summed over its dimensions: (N, num_outputs), targets (see `TargetKind`) -> (N,)."""
        raise NotImplementedError

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the samples: a scalar."""
        return self.per_sample(outputs, targets).mean()

    def predict(self, outputs: Tensor) -> Tensor:
        """The decision: class index (N,), {0, 1} or {-1, +1} (N, size), or the mean (N, size) in the units of the loss.
        The shape follows the kind of the target, whatever the number of outputs."""
        raise NotImplementedError

    def probabilities(self, outputs: Tensor) -> Tensor | None:
        """(N, K) class probabilities (kind class), (N, 1) of the positive class (binary, sign), (N, K) of independent
        labels (multi_hot); None for losses that give none."""
        return None

    def std(self, outputs: Tensor) -> Tensor | None:
        """(N, size) predicted standard deviation in the units of the loss; None for losses that predict none."""
        return None

    def distribution(self, outputs: Tensor) -> Distribution | None:
        """The distribution of a target given raw outputs, with one event per sample where the target is a vector;
        `-log_prob(target)` is `per_sample` up to the constant the loss documents. None if the loss is no likelihood."""
        return None


def check_pair(name: str, target: TargetSpec, fitting: list[str]) -> ConfigError:
    """The error for a loss that does not fit the target, with the losses that do."""
    return ConfigError(
        f"loss.name: '{name}' does not fit a target of kind '{target.kind}'; these fit: {', '.join(fitting)}"
    )


def full_precision(outputs: Tensor) -> Tensor:
    """Half-precision outputs as float32, others as they are: under autocast only the network runs in half precision."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def as_float(targets: Tensor, outputs: Tensor) -> Tensor:
    """Targets in the dtype of the outputs."""
    return targets.to(outputs.dtype) if targets.dtype != outputs.dtype else targets


def original_units(values: Tensor, target: TargetSpec, *, scale_only: bool = False) -> Tensor:
    """Undoes the standardisation of real targets: (N, size) in units of the loss -> original units."""
    if not target.mean:
        return values
    std = torch.as_tensor(target.std, dtype=values.dtype, device=values.device)
    if scale_only:
        return values * std
    return values * std + torch.as_tensor(target.mean, dtype=values.dtype, device=values.device)
