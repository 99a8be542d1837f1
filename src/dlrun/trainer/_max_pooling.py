"""Max pooling inside a compiled model, left to PyTorch's own kernel.

What PyTorch 2.15 generates for max pooling on a CPU, forward and backward, takes several times as long as its own kernel: of
a compiled LeNet about half of the step.
"""

from __future__ import annotations

import functools
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

aten = torch.ops.aten


def keep_max_pooling(model: nn.Module) -> None:
    """Makes the max pooling layers of `model` opaque to the compiler; numbers, names and uncompiled calls stay as they are."""
    for module in model.modules():
        if type(module) is nn.MaxPool2d and not module.return_indices:
            _register()
            module.forward = MethodType(_forward, module)  # type: ignore[method-assign]


def _forward(module: nn.MaxPool2d, x: Tensor) -> Tensor:
    if not torch.compiler.is_compiling() or x.dim() != 4:
        return nn.MaxPool2d.forward(module, x)
    sizes = [_pair(s) for s in (module.kernel_size, module.stride, module.padding, module.dilation)]
    return torch.ops.dlrun.max_pool2d(x, *sizes, module.ceil_mode)[0]


def _pair(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


@functools.cache
def _register() -> None:
    """Defines the operator, once; defining one loads the compiler."""

    @torch.library.custom_op("dlrun::max_pool2d", mutates_args=())
    def forward(
        x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool
    ) -> tuple[Tensor, Tensor]:
        return aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil)

    @torch.library.custom_op("dlrun::max_pool2d_backward", mutates_args=())
    def backward(
        gradient: Tensor,
        x: Tensor,
        indices: Tensor,
        kernel: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        ceil: bool,
    ) -> Tensor:
        return aten.max_pool2d_with_indices_backward(gradient, x, kernel, stride, padding, dilation, ceil, indices)

    @forward.register_fake
    def _(x: Tensor, *sizes: Any) -> tuple[Tensor, Tensor]:
        return aten.max_pool2d_with_indices(x, *sizes)

    @backward.register_fake
    def _(gradient: Tensor, x: Tensor, indices: Tensor, *sizes: Any) -> Tensor:
        return torch.empty_like(x)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.sizes = inputs
        ctx.save_for_backward(x, output[1])
        ctx.mark_non_differentiable(output[1])

    def differentiate(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
        x, indices = ctx.saved_tensors
        return torch.ops.dlrun.max_pool2d_backward(gradient, x, indices, *ctx.sizes), *[None] * len(ctx.sizes)

    forward.register_autograd(differentiate, setup_context=keep)
