"""Networks of convolutional blocks, on images or signals: what `cnn` and `conv1d` share.

Positions of a kernel along an axis: (size + 2 padding - kernel) // stride + 1. Where the division has a rest, the last
values of the axis may be left out, which the log of the run says.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from dlrun.models._activations import Activation, activation_module
from dlrun.models._dense import dense_layers
from dlrun.models._dropout import Dropout, Rate
from dlrun.models._init import Init, initialize
from dlrun.models._pooling import Pool, pooling
from dlrun.registry import ConfigError

log = logging.getLogger(__name__)
Features = Literal["flatten", "average", "adaptive"]


class Block(TypedDict):
    """One block: convolution, batch norm, activation, pooling, dropout; what is left out has the value in brackets."""

    channels: Annotated[int, Gt(0)]  # number of filters
    kernel: NotRequired[Annotated[int, Gt(0)]]  # height and width of a filter [3]
    stride: NotRequired[Annotated[int, Gt(0)]]  # of the convolution [1]
    padding: NotRequired[Annotated[int, Ge(0)]]  # zeros on each side [(kernel - 1) // 2: keeps the size at stride 1]
    pool_size: NotRequired[Annotated[int, Gt(0)]]  # height and width of a pooling area [1: no pooling]
    pool_stride: NotRequired[Annotated[int, Gt(0)]]  # step between areas [pool_size]
    batch_norm: NotRequired[bool]  # [model.batch_norm]
    dropout: NotRequired[Rate]  # [0]


Block.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


class ConvolutionalNet(nn.Module):
    """Convolutional blocks, then the last maps flattened or averaged, dense layers and a linear head.

    Args:
        input_shape: (channels, height, width) of images or (channels, steps) of signals.
        num_outputs: size of the raw output.
        blocks, pool, pool_p, features, grid, hidden, activation, init, dropout, batch_norm: see `cnn`.

    Shapes: (N, C, H, W) or (N, C, L) -> (N, num_outputs).

    Raises:
        ConfigError: a block finds its maps too small.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        blocks: Sequence[Block],
        pool: Pool,
        pool_p: float,
        features: Features,
        grid: int,
        hidden: Sequence[int],
        activation: Activation,
        init: Init,
        dropout: float,
        batch_norm: bool,
    ) -> None:
        super().__init__()
        channels, *sizes = input_shape
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, block in enumerate(blocks):
            whole = {"batch_norm": batch_norm, **block}
            parts[f"block{i + 1}"] = _block(channels, whole, pool, pool_p, activation, len(sizes))
            channels, sizes = block["channels"], _sizes_after(block, i, sizes)
        self.blocks = nn.Sequential(parts)
        self.receptive_field = receptive_field(blocks)
        sizes = {"flatten": sizes, "average": [1] * len(sizes), "adaptive": [grid] * len(sizes)}[features]
        self.average = nn.Identity() if features == "flatten" else _adaptive(sizes)
        size = channels * math.prod(sizes)
        self.dropout = Dropout(dropout)
        self.hidden = dense_layers(size, hidden, (activation,) * len(hidden), dropout, batch_norm)
        self.head = nn.Linear((size, *hidden)[-1], num_outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.average(self.blocks(x)).flatten(1)
        return self.head(self.hidden(self.dropout(x)))


def receptive_field(blocks: Sequence[Block]) -> int:
    """How many input values along an axis the last maps see: each kernel and pooling of size k adds k - 1 steps, as long as
    all strides before it together."""
    seen, step = 1, 1
    for block in blocks:
        pool = block.get("pool_size", 1)
        pool_stride = block.get("pool_stride", pool) if pool > 1 else 1
        for size, stride in ((block.get("kernel", 3), block.get("stride", 1)), (pool, pool_stride)):
            seen, step = seen + (size - 1) * step, step * stride
    return seen


def _adaptive(sizes: Sequence[int]) -> nn.Module:
    return nn.AdaptiveAvgPool2d(sizes[0]) if len(sizes) == 2 else nn.AdaptiveAvgPool1d(sizes[0])


def _padding(block: Any) -> int:
    return block.get("padding", (block.get("kernel", 3) - 1) // 2)


def _block(in_channels: int, block: Any, pool: Pool, p: float, activation: Activation, axes: int) -> nn.Sequential:
    """Convolution, nonlinearity, pooling: (N, in_channels, H, W) -> (N, channels, H', W'), or of signals."""
    channels, norm = block["channels"], block["batch_norm"]
    convolution, batch_norm = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d))[axes - 1]
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = convolution(
        in_channels, channels, block.get("kernel", 3), block.get("stride", 1), _padding(block), bias=not norm
    )
    if norm:
        parts["norm"] = batch_norm(channels)
    parts["activation"] = activation_module(activation)
    if (size := block.get("pool_size", 1)) > 1:
        parts["pool"] = pooling(pool, size, block.get("pool_stride"), axes, p)
    parts["dropout"] = Dropout(block.get("dropout", 0.0))
    return nn.Sequential(parts)


def _sizes_after(block: Any, index: int, sizes: Sequence[int]) -> list[int]:
    """Height and width (or length) of the maps after a block."""
    kernel, stride, pool = block.get("kernel", 3), block.get("stride", 1), block.get("pool_size", 1)
    maps, left_out = _positions(sizes, kernel, stride, _padding(block))
    if pool > 1:
        maps, left_out_by_pool = _positions(maps, pool, block.get("pool_stride", pool))
        left_out += left_out_by_pool
    shape = "x".join(map(str, sizes)) if len(sizes) > 1 else f"length {sizes[0]}"
    if min(maps) < 1:
        raise ConfigError(
            f"model.blocks.{index}: kernel {kernel} and pool_size {pool} do not fit into maps of {shape}; "
            f"use fewer or smaller poolings, {'larger images' if len(sizes) > 1 else 'longer signals'}, or mlp"
        )
    if any(left_out):
        log.info(
            "model.blocks.%d: strides do not divide maps of %s, whose last values are left out: they give %s",
            *(index, shape, "x".join(map(str, maps))),
        )
    return maps


def _positions(sizes: Sequence[int], kernel: int, stride: int, padding: int = 0) -> tuple[list[int], list[int]]:
    """How often a kernel or an area fits along each axis, and how many of the axis's last values (zeros of the padding apart)
    none of them sees."""
    fits = [size + 2 * padding - kernel for size in sizes]
    return [rest // stride + 1 for rest in fits], [max(0, rest % stride - padding) for rest in fits]
