"""`model=lenet`: LeNet-5 as it is used today."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._activations import Activation, activation_module
from dlrun.models._dense import dense_layers
from dlrun.models._dropout import Dropout, Rate
from dlrun.models._init import Init, initialize
from dlrun.models._lenet import into_lenet
from dlrun.models._pooling import Norm, Pool, pooling
from dlrun.models._shapes import image_shape


@MODELS.register("lenet")
class LeNet(nn.Module):
    """LeNet-5: 5x5 convolutions C1 (6 maps), C3 (16), C5 (120), pooling by 2 in S2 and S4, dense F6 (84), linear head.

    Source: LeCun et al. (1998), section II.B; its first relative, trained by backpropagation on zip codes, is of LeCun et
    al. (1989). Differs: C3 sees all maps of S2, pooling has no parameters, the head is linear instead of radial basis
    functions; for 10 classes of one-channel images that makes 61,706 parameters. `lenet_1998` is the published network.

    Images smaller than 32x32 are enlarged by the largest whole factor that keeps them within 32x32 (8x8: 4, 28x28: 1)
    and surrounded by zeros up to 32x32 (28x28: 2 on each side); of larger ones S4 is averaged down to 5x5.

    Args:
        input_shape: (channels, height, width); given by the data.
        num_outputs: size of the raw output; given by the loss.
        activation: after C1, C3, C5 and F6; tanh in the paper.
        pool: max, avg (the paper's, without parameters), sum, lp (p-norm) or stochastic (one value, drawn in proportion to
            its size).
        pool_p: p of pool=lp; 2 is the Euclidean norm, and large ones come near to max.
        init: initialisation of the weights (default: PyTorch's own, biases too); biases start at 0 in all others.
        dropout: probability that a unit of C5 or F6 is set to 0 in training.
        batch_norm: batch normalisation before each activation; the layers before it have no bias.

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        activation: Activation = "relu",
        pool: Pool = "max",
        pool_p: Norm = 2.0,
        init: Init = "default",
        dropout: Rate = 0.25,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("lenet", input_shape)

        def convolution(in_channels: int, out_channels: int, pad: tuple[int, int] = (0, 0)) -> nn.Sequential:
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            parts["conv"] = nn.Conv2d(in_channels, out_channels, 5, padding=pad, bias=not batch_norm)
            if batch_norm:
                parts["norm"] = nn.BatchNorm2d(out_channels)
            parts["activation"] = activation_module(activation)
            return nn.Sequential(parts)

        self.enlarge, padding, fit = into_lenet(height, width)
        self.c1 = convolution(channels, 6, padding)  # (N, 6, 28, 28)
        self.s2 = pooling(pool, 2, p=pool_p)  # (N, 6, 14, 14)
        self.c3 = convolution(6, 16)  # (N, 16, 10, 10)
        self.s4 = pooling(pool, 2, p=pool_p)  # (N, 16, 5, 5)
        self.fit = fit
        self.c5 = convolution(16, 120)  # (N, 120, 1, 1)
        self.dropout = Dropout(dropout)
        self.f6 = dense_layers(120, (84,), (activation,), dropout, batch_norm)
        self.head = nn.Linear(84, num_outputs)
        initialize(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.s2(self.c1(self.enlarge(x)))
        x = self.c5(self.fit(self.s4(self.c3(x))))
        return self.head(self.f6(self.dropout(x.flatten(1))))
