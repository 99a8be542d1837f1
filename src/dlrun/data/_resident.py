"""A split that lies on the device as one tensor: a batch is a gather of its rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from dlrun.data._base import Samples
from dlrun.data._decoding import decode_all
from dlrun.data._memory import Room
from dlrun.spec import Batch

CPU_CHUNK, CUDA_CHUNK = (
    2 << 20,
    32 << 20,
)  # bytes of inputs gathered at once: what stays in the cache; few kernel launches


class ResidentSplit:
    """Samples on the device.

    Args:
        inputs: (M, ...) uint8 or float32, on the device.
        targets: (N, ...); moved to the device.
        rows: int64 (N,), which rows of `inputs` the samples are; None: all.
    """

    wait_s = 0.0  # steps never wait for data

    def __init__(self, inputs: Tensor, targets: Tensor, rows: Tensor | None = None) -> None:
        self.inputs, self.device = inputs, inputs.device
        self.targets = targets.to(self.device)
        self.rows = rows if rows is None else rows.to(self.device)

    def __len__(self) -> int:
        return len(self.targets)

    def batches(
        self,
        order: Tensor | None,
        batch_size: int,
        start: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
        timed: bool = False,
    ) -> Iterator[Batch]:
        """Minibatches in `order` (int64 (N,); None: as they lie) from batch number `start` on, inputs passed through the
        elementwise `transform`. Nothing done to a batch in place reaches the stored data or another batch."""
        at_once = self._batches_at_once(batch_size)
        skipped = start % at_once
        order = torch.arange(len(self), device=self.device) if order is None else move(order, self.device)
        # from the same batch on, whatever `start` is: kernels may round by how memory is aligned, so that a resumed epoch
        # must find each batch at the place where a whole one has it
        order = order[(start - skipped) * batch_size :]
        yield from islice(self._gathered(order, batch_size, at_once, transform), skipped, None)

    def _gathered(
        self, order: Tensor, batch_size: int, at_once: int, transform: Callable[[Tensor], Tensor] | None
    ) -> Iterator[Batch]:
        if not len(order):
            return
        places = order if self.rows is None else self.rows.index_select(0, order)
        size = batch_size * at_once
        for rows, place in zip(order.split(size), places.split(size), strict=True):
            inputs = self.inputs.index_select(0, place)
            parts = inputs if transform is None else transform(inputs), self.targets.index_select(0, rows), rows
            # `split` would give views that autograd forbids to change in place, and that share a version counter
            yield from map(Batch, *(part.unsafe_split(batch_size) for part in parts))

    def _batches_at_once(self, batch_size: int) -> int:
        """A batch of few bytes costs no less than the calls that gather it, so several are gathered together."""
        bytes_of_batch = 4 * batch_size * math.prod(self.inputs.shape[1:])
        return min(1024, max(1, (CUDA_CHUNK if self.device.type == "cuda" else CPU_CHUNK) // max(1, bytes_of_batch)))

    def close(self) -> None:
        """Nothing to release."""


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor in ordinary memory on `device`, without waiting for the device."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def is_resident(samples: Samples, loader: str, room: Room) -> bool:
    """Whether a split is kept on the device: as asked, or where it fits into `room` (`auto`). It never changes a number."""
    if loader != "auto":
        return loader == "resident"
    inputs = samples.inputs
    if isinstance(inputs, Tensor):
        return inputs.device == room.device or room.admit(inputs.numel() * inputs.element_size())
    return room.admit(len(samples) * math.prod(input_shape(samples)))


def input_shape(samples: Samples) -> tuple[int, ...]:
    """Shape of one input; decodes the first file where inputs are files."""
    if isinstance(samples.inputs, Tensor):
        return tuple(samples.inputs.shape[1:])
    assert samples.decode is not None, "file paths need a decode function"
    return tuple(samples.decode(samples.inputs[0]).shape)


def decoded(samples: Samples) -> Samples:
    """The samples with all files read into one uint8 tensor; unchanged where inputs are tensors."""
    if isinstance(samples.inputs, Tensor):
        return samples
    return replace(samples, inputs=decode_all(samples), decode=None)
