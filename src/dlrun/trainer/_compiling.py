"""Compiling a model, or going on without."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dlrun.device import autocast
from dlrun.trainer._max_pooling import keep_max_pooling

log = logging.getLogger(__name__)


def compiled(model: nn.Module, inputs: Tensor, precision: str) -> Callable[[Tensor], Tensor] | None:
    """The model compiled for training on (micro-)batches like `inputs`, with which it is tried forward and backward; None,
    with one warning, where PyTorch cannot compile it.

    Batches of another size, such as the last one of an epoch, go through the model itself: which kernel a batch meets
    depends on nothing but its size, so that a resumed run meets the same ones.
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # says that there is no CUDA
    size, device = len(inputs), inputs.device
    if device.type == "cpu":
        keep_max_pooling(model)
    compiled_model = torch.compile(model, dynamic=False)

    def forward(inputs: Tensor) -> Tensor:
        return compiled_model(inputs) if len(inputs) == size else model(inputs)

    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        import torch._dynamo.config as limits

        # each run of a sweep in one process counts; at the limit PyTorch would go on uncompiled without a word
        with limits.patch(recompile_limit=256, fail_on_recompile_limit_hit=True), autocast(precision, device):
            outputs = forward(inputs)
        outputs.float().sum().backward()
    except Exception as error:  # compilers fail in many ways, and nothing but speed depends on it
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        log.warning("trainer.compile: this model could not be compiled and is trained without (%s)", reason)
        return None
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, saved in buffers:  # batch norm has seen zeros
                buffer.copy_(saved)
    return forward
