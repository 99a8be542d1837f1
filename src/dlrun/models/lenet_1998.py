"""`model=lenet_1998`: LeNet-5 as it was published."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._init import Init, initialize
from dlrun.models._lenet import into_lenet
from dlrun.models._shapes import image_shape

TABLE = (
    *((i % 6, (i + 1) % 6, (i + 2) % 6) for i in range(6)),
    *((i % 6, (i + 1) % 6, (i + 2) % 6, (i + 3) % 6) for i in range(6)),
    *((i % 6, (i + 1) % 6, (i + 3) % 6, (i + 4) % 6) for i in range(3)),
    (0, 1, 2, 3, 4, 5),
)
"""The maps of S2 that each of the 16 maps of C3 sees: table I of the paper."""


class ScaledTanh(nn.Module):
    """1.7159 tanh(2 x / 3), which maps +-1 to +-1.

    Source: LeCun et al. (1998), equation 6 and appendix A.

    Shapes: any -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(2 / 3 * x)


class Subsampling(nn.Module):
    """The sum of each 2x2 area, times a trainable coefficient of its map, plus a trainable bias. The coefficients start at
    1/4, that is with the average.

    Source: LeCun et al. (1998), section II.B, layer S2.

    Args:
        channels: number of maps.

    Shapes: (N, channels, H, W) -> (N, channels, H // 2, W // 2).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        sums = F.avg_pool2d(x, 2, divisor_override=1)
        return sums * self.weight[:, None, None] + self.bias[:, None, None]


class TableConvolution(nn.Module):
    """A convolution whose maps see only some of the input maps; it has weights for these alone.

    Source: LeCun et al. (1998), section II.B, layer C3.

    Args:
        table: for each map, the input maps that it sees.
        in_channels: number of input maps.
        kernel: height and width of the filters.
        init: initialisation of the weights, each map with its own number of inputs.

    Shapes: (N, in_channels, H, W) -> (N, len(table), H - kernel + 1, W - kernel + 1).
    """

    rows: Tensor

    def __init__(self, table: Sequence[Sequence[int]], in_channels: int, kernel: int, init: Init) -> None:
        super().__init__()
        maps = [nn.Conv2d(len(seen), 1, kernel) for seen in table]
        for each in maps:
            initialize(each, init)
        self.weight = nn.Parameter(torch.cat([each.weight[0].detach() for each in maps]))  # (connections, k, k)
        self.bias = nn.Parameter(torch.cat([each.bias.detach() for each in maps if each.bias is not None]))
        rows = [i * in_channels + channel for i, seen in enumerate(table) for channel in seen]
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.shape = (len(table), in_channels, kernel, kernel)

    def forward(self, x: Tensor) -> Tensor:
        maps, channels, *kernel = self.shape
        weight = self.weight.new_zeros(maps * channels, *kernel).index_copy(0, self.rows, self.weight)
        return F.conv2d(x, weight.view(self.shape), self.bias)


@MODELS.register("lenet_1998")
class LeNet1998(nn.Module):
    """LeNet-5 as published: 5x5 convolutions C1 (6 maps), C3 (16), C5 (120), sums of 2x2 areas with a trainable coefficient
    and bias in S2 and S4, dense F6 (84); each of them followed by 1.7159 tanh(2 x / 3).

    Source: LeCun et al. (1998), section II.B. C1 to F6 have the 60,000 parameters of the paper. Differs: a linear head
    (850 parameters for 10 classes), whose outputs losses take, in place of Euclidean radial basis functions; and the
    initialisation.

    Images smaller than 32x32 are enlarged by the largest whole factor that keeps them within 32x32 (8x8: 4, 28x28: 1)
    and surrounded by zeros up to 32x32 (28x28: 2 on each side); of larger ones S4 is averaged down to 5x5.

    Args:
        input_shape: (channels, height, width); given by the data.
        num_outputs: size of the raw output; given by the loss.
        sparse: each map of C3 sees the maps of S2 of the paper's table I; false: all of them.
        init: initialisation of the weights; biases start at 0 (but for default, PyTorch's own, which draws them too).

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images.
    """

    def __init__(
        self, input_shape: tuple[int, ...], num_outputs: int, *, sparse: bool = True, init: Init = "lecun_normal"
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet_1998", input_shape)
        self.enlarge, padding, fit = into_lenet(height, width)
        c3 = TableConvolution(TABLE, 6, 5, init) if sparse else nn.Conv2d(6, 16, 5)
        self.c1 = _squashed(nn.Conv2d(channels, 6, 5, padding=padding))  # (N, 6, 28, 28)
        self.s2 = _squashed(Subsampling(6))  # (N, 6, 14, 14)
        self.c3 = _squashed(c3)  # (N, 16, 10, 10)
        self.s4 = _squashed(Subsampling(16))  # (N, 16, 5, 5)
        self.fit = fit
        self.c5 = _squashed(nn.Conv2d(16, 120, 5))  # (N, 120, 1, 1)
        self.f6 = _squashed(nn.Linear(120, 84))
        self.head = nn.Linear(84, num_outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.s2(self.c1(self.enlarge(x)))
        x = self.c5(self.fit(self.s4(self.c3(x))))
        return self.head(self.f6(x.flatten(1)))


def _squashed(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layer=layer, squash=ScaledTanh()))
