"""`model=resnet20` and the like: residual networks for small images."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._init import Init, initialize
from dlrun.models._shapes import image_shape
from dlrun.registry import ConfigError


class ResidualBlock(nn.Module):
    """y = relu(x + F(x)) with two 3x3 convolutions in F; the shortcut takes every `stride`-th pixel and fills new
    channels with zeros, so it has no parameters.

    Source: He et al. (2016), section 3.3, option A.

    Args:
        in_channels: channels of x.
        channels: channels of y.
        stride: of the first convolution.
        residual: false leaves the shortcut out: y = relu(F(x)).
        batch_norm: batch normalisation after each convolution, which then has no bias.

    Shapes: (N, in_channels, H, W) -> (N, channels, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
        self, in_channels: int, channels: int, stride: int, residual: bool = True, batch_norm: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=not batch_norm)
        self.norm1 = _norm(channels, batch_norm)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=not batch_norm)
        self.norm2 = _norm(channels, batch_norm)
        self.stride, self.new_channels, self.residual = stride, channels - in_channels, residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        if not self.residual:
            return F.relu(y)
        if self.stride > 1 or self.new_channels:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(x + y)


def _norm(channels: int, batch_norm: bool) -> nn.Module:
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


@MODELS.register("resnet_cifar")
class ResNetCIFAR(nn.Module):
    """The residual network of depth 6n + 2 for small images: a 3x3 convolution, three stages of n blocks with 16, 32
    and 64 channels, global average, linear head. ResNet-20 has 269,722 parameters for 10 classes of colour images.

    Source: He et al. (2016), section 4.2, with its plain networks (`residual` false).

    Args:
        input_shape: (channels, height, width), at least 4x4 pixels; given by the data.
        num_outputs: size of the raw output; given by the loss.
        depth: number of layers with weights, 6n + 2.
        residual: false leaves the shortcuts out, for a plain network of the same layers.
        batch_norm: batch normalisation after each convolution, which then has no bias.
        init: initialisation of the weights; biases start at 0.

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images, or the depth is not 6n + 2.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        depth: Annotated[int, Ge(8), Le(2000)] = 20,
        residual: bool = True,
        batch_norm: bool = True,
        init: Init = "he_normal",
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("resnet_cifar", input_shape, smallest=4)
        n, rest = divmod(depth - 2, 6)
        if rest:
            raise ConfigError(f"model.depth: got {depth}; allowed: 6n + 2, such as {6 * n + 2} or {6 * n + 8}")

        def stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
            sizes = [(in_channels, channels, stride), *[(channels, channels, 1)] * (n - 1)]
            return nn.Sequential(*(ResidualBlock(*size, residual, batch_norm) for size in sizes))

        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=not batch_norm)
        self.norm = _norm(16, batch_norm)
        self.stage1 = stage(16, 16, 1)  # (N, 16, H, W)
        self.stage2 = stage(16, 32, 2)  # (N, 32, H/2, W/2)
        self.stage3 = stage(32, 64, 2)  # (N, 64, H/4, W/4)
        self.head = nn.Linear(64, num_outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean((2, 3)))
