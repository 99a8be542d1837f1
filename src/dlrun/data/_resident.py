"""A split that lies on the device as one tensor: a batch is a gather of its rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from dlrun.data._base import Samples
from dlrun.data._streaming import RawBatch, decode_all

CPU_LIMIT = 1 << 30  # bytes of decoded files
CUDA_SHARE = 0.25  # of the free memory: the model, its gradients and activations need the rest


class ResidentSplit:
    """Samples on the device.

    Args:
        inputs: (N, ...) uint8 or float32.
        targets: (N, ...).
        device: where both are moved.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, device: torch.device) -> None:
        self.inputs = inputs.to(device)
        self.targets = targets.to(device)
        self.rows = torch.arange(len(targets), device=device)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, order: Tensor | None, batch_size: int, start: int = 0) -> Iterator[RawBatch]:
        """Minibatches in `order` (int64 (N,); None: as they lie) from batch number `start` on."""
        first = start * batch_size
        if order is None:
            for i in range(first, len(self), batch_size):
                part = slice(i, i + batch_size)
                yield self.inputs[part].clone(), self.targets[part], self.rows[part]  # a model may work in place
            return
        order = order.to(self.rows.device)
        for i in range(first, len(self), batch_size):
            rows = order[i : i + batch_size]
            yield self.inputs.index_select(0, rows), self.targets.index_select(0, rows), rows

    def close(self) -> None:
        """Nothing to release."""


def is_resident(samples: Samples, loader: str, device: torch.device) -> bool:
    """Whether a split is kept on the device: as asked, or where it fits (`auto`). It never changes a number."""
    if loader != "auto":
        return loader == "resident"
    in_memory = isinstance(samples.inputs, Tensor)
    if device.type == "cpu" and in_memory:
        return True  # it is there already
    limit = CUDA_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_LIMIT
    width = samples.inputs.element_size() if isinstance(samples.inputs, Tensor) else 1
    return len(samples) * math.prod(input_shape(samples)) * width <= limit


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
    assert samples.decode is not None, "file paths need a decode function"
    return replace(samples, inputs=decode_all(samples.inputs, samples.decode), decode=None)
