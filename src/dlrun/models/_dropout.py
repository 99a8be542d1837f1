"""Dropout whose mask is a pure function of (seed, layer name, step), and the randomness of other people's modules."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from dlrun import streams

Rate = Annotated[float, Ge(0), Lt(1)]
BLOCK = 256  # steps whose keys are made at once


class Dropout(nn.Module):
    """Sets each value to 0 with probability `rate` in training and scales the others by 1 / (1 - rate).

    Source: Srivastava et al. (2014), section 4. Differs: scaled in training instead of in evaluation; the mask comes
    from `streams.bits` of a key that `set_keys` fills before each forward pass, so it needs no random state. Key,
    threshold and scale are buffers, so that models of different rates can be stacked.

    Args:
        rate: probability of a zero, in [0, 1).

    Shapes: any -> the same.
    """

    key: Tensor
    threshold: Tensor
    scale: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("key", torch.zeros(2, dtype=torch.int32), persistent=False)
        threshold = round(rate * 2**32) - 2**31  # words are uniform in [-2^31, 2^31)
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.int32), persistent=False)
        self.register_buffer("scale", torch.tensor(1.0 / (1.0 - rate)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = streams.bits(self.key, x.shape) >= self.threshold
        return x * (kept * self.scale.to(x.dtype))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def random_modules(model: nn.Module) -> list[tuple[str, Dropout]]:
    """The dropouts of `model` that drop anything, with their names."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, Dropout) and m.rate > 0]


class DropoutKeys:
    """The keys of a model's dropouts, from the streams `dropout/<module name>`.

    Args:
        dropouts: the model, which must be on its device already, or what `random_modules` gave for it.
        seed: of the run.
    """

    def __init__(self, dropouts: nn.Module | Sequence[tuple[str, Dropout]], seed: int) -> None:
        pairs = random_modules(dropouts) if isinstance(dropouts, nn.Module) else dropouts
        self.seed, self.names = seed, tuple(name for name, _ in pairs)
        self.keys = [dropout.key for _, dropout in pairs]
        self._blocks: dict[int, tuple[int, tuple[Tensor, ...]]] = {}  # by micro-batch: its number, keys of its steps

    def fill(self, step: int, micro: int = 0) -> None:
        """Gives every dropout its key of this step. `micro` tells several forward passes of one step apart."""
        if not self.keys:
            return
        number, row = divmod(step, BLOCK)
        known, steps = self._blocks.get(micro, (-1, ()))
        if known != number:
            steps = keys_of_steps(self.seed, self.names, number, micro, self.keys[0].device).unbind()
            self._blocks[micro] = number, steps
        torch._foreach_copy_(self.keys, steps[row].unbind())  # within the device, which is not waited for


def set_keys(model: nn.Module | Sequence[tuple[str, Dropout]], seed: int, step: int, micro: int = 0) -> None:
    """Gives every dropout of `model` its key of this step, once; in a loop, keep a `DropoutKeys`."""
    DropoutKeys(model, seed).fill(step, micro)


@functools.lru_cache(maxsize=256)  # one for each micro-batch of a step, a few bytes a key
def keys_of_steps(seed: int, names: tuple[str, ...], number: int, micro: int, device: torch.device) -> Tensor:
    """The keys of steps number * BLOCK and after: int32 (BLOCK, dropouts, 2) on the device."""
    steps = range(number * BLOCK, (number + 1) * BLOCK)
    words = [streams.keys(seed, f"dropout/{name}", steps, micro) for name in names]
    return torch.stack(words, 1).to(device, non_blocking=True)


def replace_dropout(model: nn.Module) -> None:
    """Replaces every `nn.Dropout` inside `model` by ours, of the same rate."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, Dropout(child.p))


def has_foreign_randomness(model: nn.Module) -> bool:
    """Whether `model` may draw from the global generators: it has modules of PyTorch that do, or modules of a user, whose
    `forward` may call anything (`F.dropout`, `torch.rand`)."""
    return any(_draws(module) for module in model.modules())


def is_foreign(component: object) -> bool:
    """Whether a component is a user's, which may call anything."""
    return type(component).__module__.partition(".")[0] not in ("torch", "torchvision", "dlrun")


def _draws(module: nn.Module) -> bool:
    if is_foreign(module) or type(module).__module__ == "torchvision.ops.stochastic_depth":
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, nn.RReLU | nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
