"""`model=conv1d`: a one-dimensional convolutional network for signals."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from dlrun.models import MODELS
from dlrun.models._activations import Activation
from dlrun.models._convolution import Block, ConvolutionalNet, Features
from dlrun.models._dropout import Rate
from dlrun.models._init import Init
from dlrun.models._pooling import Norm, Pool
from dlrun.models._shapes import signal_shape

BLOCKS: tuple[Block, ...] = (
    {"channels": 32, "kernel": 5, "pool_size": 2},
    {"channels": 64, "kernel": 5, "stride": 2},
    {"channels": 64, "kernel": 5, "stride": 2},
)


@MODELS.register("conv1d")
class Conv1D(ConvolutionalNet):
    """Convolutional blocks along time, then averaged or flattened maps, dense layers and a linear head.

    A vector is read as a signal of one channel, an image row by row: height steps of channels x width values.

    Source: Waibel et al. (1989), "Phoneme recognition using time-delay neural networks". Differs: pooling, batch norm,
    ReLU.

    Args:
        input_shape: (channels, steps); given by the data.
        num_outputs: size of the raw output; given by the loss.
        blocks: from input to output, each {channels, kernel: 3, stride: 1, padding: (kernel - 1) // 2, pool_size: 1,
            pool_stride: pool_size, batch_norm: the model's, dropout: 0}; only channels must be given.
        pool: max, avg, sum, lp (p-norm) or stochastic (one value, drawn in proportion to its size); where a block has a
            pool_size.
        pool_p: p of pool=lp; 2 is the Euclidean norm, and large ones come near to max.
        features: average each of the last maps, or adaptive: average each to grid values, with which the same weights take
            signals of any length; or flatten them.
        grid: length of the averaged maps of features=adaptive.
        hidden: widths of the dense layers before the head.
        activation: after each convolution and hidden layer.
        init: initialisation of the weights; biases start at 0.
        dropout: probability that an input of a dense layer is set to 0 in training.
        batch_norm: batch normalisation before each activation; the layers before it have no bias.

    Shapes: (N, C, L), (N, L) or (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: a block finds its maps too small.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        blocks: tuple[Block, ...] = BLOCKS,
        pool: Pool = "max",
        pool_p: Norm = 2.0,
        features: Features = "average",
        grid: Annotated[int, Gt(0)] = 4,
        hidden: tuple[Annotated[int, Gt(0)], ...] = (),
        activation: Activation = "relu",
        init: Init = "he_normal",
        dropout: Rate = 0.0,
        batch_norm: bool = True,
    ) -> None:
        settings = (blocks, pool, pool_p, features, grid, hidden, activation, init, dropout, batch_norm)
        super().__init__(signal_shape(input_shape), num_outputs, *settings)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            x = x.unsqueeze(1)
        elif x.dim() == 4:
            x = x.transpose(2, 3).flatten(1, 2)  # (N, C * W, H)
        return super().forward(x)
