"""`model=cnn`: a convolutional network from a list of blocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from torch import Tensor, nn
from typing_extensions import NotRequired, TypedDict

from dlrun.models import MODELS
from dlrun.models._activations import Activation, activation_module
from dlrun.models._dense import dense_layers
from dlrun.models._dropout import Dropout, Rate
from dlrun.models._init import Init, initialize
from dlrun.models._pooling import Pool, pooling
from dlrun.models._shapes import image_shape
from dlrun.registry import ConfigError


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

BLOCKS: tuple[Block, ...] = (
    {"channels": 32, "pool_size": 2},
    {"channels": 64, "pool_size": 2},
    {"channels": 64},
)


@MODELS.register("cnn")
class CNN(nn.Module):
    """Convolutional blocks from a list, then flattened or averaged maps, dense layers and a linear head.

    Args:
        input_shape: (channels, height, width); given by the data.
        num_outputs: size of the raw output; given by the loss.
        blocks: from input to output, each {channels, kernel: 3, stride: 1, padding: (kernel - 1) // 2, pool_size: 1,
            pool_stride: pool_size, batch_norm: the model's, dropout: 0}; only channels must be given.
        pool: max, avg, sum or lp (Euclidean norm); where a block has a pool_size.
        features: flatten the last maps, or take the average of each.
        hidden: widths of the dense layers before the head.
        activation: after each convolution and hidden layer.
        init: initialisation of the weights; biases start at 0.
        dropout: probability that an input of a dense layer is set to 0 in training.
        batch_norm: batch normalisation before each activation; the layers before it have no bias.

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images, or a block finds its maps too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        blocks: tuple[Block, ...] = BLOCKS,
        pool: Pool = "max",
        features: Literal["flatten", "average"] = "flatten",
        hidden: tuple[Annotated[int, Gt(0)], ...] = (128,),
        activation: Activation = "relu",
        init: Init = "he_normal",
        dropout: Rate = 0.25,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("cnn", input_shape)
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for i, block in enumerate(blocks):
            height, width = _output_size(block, i, (height, width))
            parts[f"block{i + 1}"] = _block(channels, {"batch_norm": batch_norm, **block}, pool, activation)
            channels = block["channels"]
        self.blocks = nn.Sequential(parts)
        self.average = nn.AdaptiveAvgPool2d(1) if features == "average" else nn.Identity()
        size = channels if features == "average" else channels * height * width
        self.dropout = Dropout(dropout)
        self.hidden = dense_layers(size, hidden, (activation,) * len(hidden), dropout, batch_norm)
        self.head = nn.Linear((size, *hidden)[-1], num_outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.average(self.blocks(x)).flatten(1)
        return self.head(self.hidden(self.dropout(x)))


def _padding(block: Any) -> int:
    return block.get("padding", (block.get("kernel", 3) - 1) // 2)


def _block(in_channels: int, block: Any, pool: Pool, activation: Activation) -> nn.Sequential:
    """Convolution, nonlinearity, pooling: (N, in_channels, H, W) -> (N, channels, H', W')."""
    channels, norm = block["channels"], block["batch_norm"]
    kernel, stride = block.get("kernel", 3), block.get("stride", 1)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(in_channels, channels, kernel, stride, _padding(block), bias=not norm)
    if norm:
        parts["norm"] = nn.BatchNorm2d(channels)
    parts["activation"] = activation_module(activation)
    if (size := block.get("pool_size", 1)) > 1:
        parts["pool"] = pooling(pool, size, block.get("pool_stride"))
    parts["dropout"] = Dropout(block.get("dropout", 0.0))
    return nn.Sequential(parts)


def _output_size(block: Any, index: int, size: Sequence[int]) -> list[int]:
    """Height and width after a block, (size + 2 padding - kernel) // stride + 1 for convolution and pooling alike."""
    kernel, pool = block.get("kernel", 3), block.get("pool_size", 1)
    maps = [(s + 2 * _padding(block) - kernel) // block.get("stride", 1) + 1 for s in size]
    maps = [(s - pool) // block.get("pool_stride", pool) + 1 if pool > 1 else s for s in maps]
    if min(maps) < 1:
        raise ConfigError(
            f"model.blocks.{index}: kernel {kernel} and pool_size {pool} do not fit into maps of {size[0]}x{size[1]}; "
            "use fewer or smaller poolings, or larger images"
        )
    return maps
