"""`model=inception`: a small network of inception blocks, for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Annotated

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._activations import Activation, activation_module
from dlrun.models._dropout import Dropout, Rate
from dlrun.models._init import Init, initialize
from dlrun.models._shapes import image_shape
from dlrun.registry import ConfigError

Width = Annotated[int, Gt(0)]


class InceptionBlock(nn.Module):
    """Four branches side by side, whose maps are concatenated: a 1x1 convolution; a 1x1 that reduces the channels and a
    3x3; another 1x1 and a 5x5; 3x3 max pooling and a 1x1. An activation follows each convolution.

    Source: Szegedy et al. (2015), figure 2b. Differs: batch normalisation before each activation, if wanted.

    Args:
        in_channels: channels of the input.
        one: maps of the 1x1 branch.
        three: maps of the reduction and of the 3x3 convolution.
        five: maps of the reduction and of the 5x5 convolution.
        pool: maps behind the pooling.
        activation: after each convolution.
        batch_norm: batch normalisation before each activation; the convolutions then have no bias.

    Shapes: (N, in_channels, H, W) -> (N, one + three[1] + five[1] + pool, H, W).
    """

    def __init__(
        self,
        in_channels: int,
        one: int,
        three: tuple[int, int],
        five: tuple[int, int],
        pool: int,
        activation: Activation = "relu",
        batch_norm: bool = True,
    ) -> None:
        super().__init__()

        def convolution(channels: int, maps: int, kernel: int) -> nn.Sequential:
            return convolved(channels, maps, kernel, activation, batch_norm)

        self.one = convolution(in_channels, one, 1)
        self.three = nn.Sequential(convolution(in_channels, three[0], 1), convolution(*three, 3))
        self.five = nn.Sequential(convolution(in_channels, five[0], 1), convolution(*five, 5))
        self.pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(in_channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)


@MODELS.register("inception")
class Inception(nn.Module):
    """A 3x3 convolution, stages of inception blocks with 3x3 max pooling of stride 2 between them, global average, dropout,
    linear head: GoogLeNet for images of some 8 to 64 pixels.

    Of the maps of a block 1/4 are of its 1x1 branch, 1/2 of the 3x3 (reduced to 3/8 before), 1/8 of the 5x5 (reduced to 1/16)
    and 1/8 of the pooling branch, as in block 3a of the paper.

    Source: Szegedy et al. (2015), section 5. Differs: stem and widths for small images, batch normalisation, no auxiliary
    classifiers. `googlenet` is the network of the paper.

    Args:
        input_shape: (channels, height, width); given by the data.
        num_outputs: size of the raw output; given by the loss.
        stem: maps of the first convolution.
        stages: for each stage the maps of its blocks, multiples of 16.
        activation: after each convolution.
        init: initialisation of the weights; biases start at 0.
        dropout: probability that an averaged map is set to 0 in training.
        batch_norm: batch normalisation before each activation; the convolutions then have no bias.

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images, or a width is not a multiple of 16.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        stem: Width = 32,
        stages: tuple[tuple[Width, ...], ...] = ((64, 64), (128, 128)),
        activation: Activation = "relu",
        init: Init = "he_normal",
        dropout: Rate = 0.2,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("inception", input_shape)
        self.stem = convolved(channels, stem, 3, activation, batch_norm)
        channels = stem
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for s, stage in enumerate(stages):
            if s:
                parts[f"pool{s}"] = nn.MaxPool2d(3, stride=2, padding=1)
            for b, maps in enumerate(stage):
                n, rest = divmod(maps, 16)
                if rest:
                    near = max(16, 16 * round(maps / 16))
                    raise ConfigError(f"model.stages.{s}.{b}: got {maps}; allowed: multiples of 16, such as {near}")
                parts[f"block{s + 1}_{b + 1}"] = InceptionBlock(
                    channels, 4 * n, (6 * n, 8 * n), (n, 2 * n), 2 * n, activation, batch_norm
                )
                channels = maps
        self.blocks = nn.Sequential(parts)
        self.dropout = Dropout(dropout)
        self.head = nn.Linear(channels, num_outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        return self.head(self.dropout(x))


def convolved(channels: int, maps: int, kernel: int, activation: Activation, batch_norm: bool) -> nn.Sequential:
    """A convolution that keeps the size, batch norm, activation: (N, channels, H, W) -> (N, maps, H, W)."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    parts["conv"] = nn.Conv2d(channels, maps, kernel, padding=kernel // 2, bias=not batch_norm)
    if batch_norm:
        parts["norm"] = nn.BatchNorm2d(maps)
    parts["activation"] = activation_module(activation)
    return nn.Sequential(parts)
