"""What a run needs of memory: an estimate before it begins, its peak once it has ended, and when memory has run out."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer, RMSprop

from dlrun.data._memory import free_memory
from dlrun.device import autocast
from dlrun.optimizers._whole_set import WholeSet

log = logging.getLogger("dlrun")
_PROBES = (2, 3)  # samples: most batch norms refuse one
_SIGNS = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA ran out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step on the device of the model, without those of the data set.

    Attributes:
        samples: of the (micro-)batch that is estimated.
        weights: parameters and buffers.
        gradients: of the trainable parameters.
        optimizer: its state, and the average of the weights where one is kept.
        activations: the inputs, what the forward pass keeps for the backward pass, and the largest part of that once more
            for the values in hand; None: unknown, for the model cannot be copied or run on zeros.
    """

    samples: int
    weights: int
    gradients: int
    optimizer: int
    activations: int | None

    @property
    def total(self) -> int:
        """All that is known."""
        return self.weights + self.to_come

    @property
    def to_come(self) -> int:
        """What training takes on top of the weights, which lie on the device already."""
        return self.gradients + self.optimizer + (self.activations or 0)


def estimate(
    model: nn.Module, input_shape: Sequence[int], batch_size: int, precision: str = "fp32", states: int = 2
) -> MemoryEstimate:
    """The memory of a training step of `batch_size` samples, rather too much than too little: 0.8 to 1.7 times what PyTorch
    allocates in one of more than 1 MiB with the networks of dlrun (gradients may take the place of activations, which counts
    twice here; cuDNN's workspaces do not count).

    Two and three samples of zeros are sent forward through a copy, so that it takes as long as a step of two samples. The
    model and PyTorch's random numbers stay as they are, and nothing that the copy raises ends a run.

    Args:
        model: on its device.
        input_shape: of one sample.
        batch_size: samples that go forward and backward at once.
        precision: fp32, bf16 or fp16.
        states: tensors of the size of a parameter that are kept beside it: `state_tensors`, and 1 for an average.
    """
    trainable = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    return MemoryEstimate(
        samples=batch_size,
        weights=sum(map(_bytes, [*model.parameters(), *model.buffers()])),
        gradients=trainable,
        optimizer=states * trainable,
        activations=_activations(model, tuple(input_shape), batch_size, precision),
    )


def state_tensors(optimizer: Optimizer) -> int:
    """How many tensors of the size of a parameter an optimizer keeps for it; 2 where it is not known."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, WholeSet):
        return 0
    if isinstance(optimizer, SGD):
        return int(group["momentum"] != 0)
    if isinstance(optimizer, RMSprop):
        return 1 + int(group["momentum"] != 0) + int(group["centered"])
    return 3 if isinstance(optimizer, Adam) and group["amsgrad"] else 2


def tell(needed: MemoryEstimate, device: torch.device, halves: bool = False) -> None:
    """Writes the estimate into the log, and warns where less is free on the device, unless micro-batches get smaller by
    themselves there (`halves`)."""
    free = free_memory(device)
    parts = {"weights": needed.weights, "gradients": needed.gradients, "optimizer": needed.optimizer}
    text = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
    kept = "unknown" if needed.activations is None else _mib(needed.activations)
    at_once = f"{needed.samples} sample{'' if needed.samples == 1 else 's'}"
    log.info(
        "memory: %s, activations of %s %s: %s estimated; %s free on %s",
        *(text, at_once, kept, _mib(needed.total), _mib(free), device),
    )
    if needed.to_come > free and not (halves and device.type == "cuda"):
        log.warning(
            "memory: a step of %s is estimated to take %s, but %s are free on %s: if it fails, %s",
            *(at_once, _mib(needed.to_come), _mib(free), device, remedy(device)),
        )


def remedy(device: torch.device) -> str:
    """What a user can do where the memory of `device` does not suffice."""
    split = "auto" if device.type == "cuda" else "4"  # the system ends a process that takes too much of its own memory
    return f"try a smaller data.batch_size, trainer.accumulate={split} or trainer.precision=bf16"


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device did not suffice; the libraries below PyTorch say so in a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)
    )


def begin_peak() -> None:
    """Forgets the peaks of runs before this one in the same process, on CUDA devices; before anything is placed there."""
    if torch.cuda.is_initialized():
        gc.collect()  # what an earlier run has left in cycles is not this one's
        for number in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(number)


def peak(device: torch.device) -> dict[str, float]:
    """Peaks in MiB for results.json: `peak_rss_mib` of the whole life of this process, whichever runs it has seen, without
    worker processes; on CUDA `peak_device_mib`, what tensors took since `begin_peak`."""
    memory = {"peak_rss_mib": round(_peak_rss() / 2**20, 1)}
    if device.type == "cuda":
        memory["peak_device_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return memory


def _peak_rss() -> int:
    with contextlib.suppress(
        OSError, ValueError, IndexError
    ):  # getrusage tells of the program that started this one, too
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _activations(model: nn.Module, shape: tuple[int, ...], batch_size: int, precision: str) -> int | None:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    cuda = [device] if device.type == "cuda" else []
    try:
        twin = copy.deepcopy(model).train()
        with torch.random.fork_rng(devices=cuda), autocast(precision, device):
            kept = [
                _kept(twin, torch.zeros(n, *shape, device=device))
                for n in (_PROBES if batch_size > 3 else (batch_size,))
            ]
    except Exception as error:  # a user's model may do anything, and nothing depends on it
        log.debug("memory: the activations cannot be estimated: %s", error)
        return None
    inputs = batch_size * 4 * math.prod(shape)
    if len(kept) == 1:
        return inputs + sum(kept[0]) + max(kept[0], default=0)
    two, three = map(sum, kept)
    each = max(0, three - two)  # of a sample; the rest, such as weights in half precision, is kept once
    largest = max((b - a for a, b in zip(*kept, strict=False)), default=0)
    return inputs + max(0, two - 2 * each) + batch_size * (each + max(0, largest))


def _kept(model: nn.Module, inputs: Tensor) -> list[int]:
    """Bytes of each memory block that a forward pass keeps for the backward pass: not of inputs, parameters and buffers."""
    own = {_block(tensor) for tensor in (inputs, *model.parameters(), *model.buffers())}
    blocks: dict[int, torch.UntypedStorage] = {}  # alive, so that no number is given twice

    def keep(tensor: Tensor) -> Tensor:
        if _block(tensor) not in own:
            blocks.setdefault(_block(tensor), tensor.untyped_storage())
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = model(inputs)  # noqa: F841 - autograd frees what it keeps with the outputs
    return [block.nbytes() for block in blocks.values()]


def _block(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"
