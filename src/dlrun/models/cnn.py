"""`model=cnn`: a convolutional network from a list of blocks."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt

from dlrun.models import MODELS
from dlrun.models._activations import Activation
from dlrun.models._convolution import Block, ConvolutionalNet, Features
from dlrun.models._dropout import Rate
from dlrun.models._init import Init
from dlrun.models._pooling import Norm, Pool
from dlrun.models._shapes import image_shape

BLOCKS: tuple[Block, ...] = (
    {"channels": 32, "pool_size": 2},
    {"channels": 64, "pool_size": 2},
    {"channels": 64},
)


@MODELS.register("cnn")
class CNN(ConvolutionalNet):
    """Convolutional blocks from a list, then flattened or averaged maps, dense layers and a linear head.

    A kernel or an area has (size + 2 padding - kernel) // stride + 1 positions along an axis; where that leaves the last
    rows or columns out, the log of the run says so.

    Args:
        input_shape: (channels, height, width); given by the data.
        num_outputs: size of the raw output; given by the loss.
        blocks: from input to output, each {channels, kernel: 3, stride: 1, padding: (kernel - 1) // 2, pool_size: 1,
            pool_stride: pool_size, batch_norm: the model's, dropout: 0}; only channels must be given.
        pool: max, avg, sum, lp (p-norm) or stochastic (one value, drawn in proportion to its size); where a block has a
            pool_size.
        pool_p: p of pool=lp; 2 is the Euclidean norm, and large ones come near to max.
        features: flatten the last maps; or average each, or adaptive: average each to grid x grid values, with which the
            same weights take images of any size.
        grid: height and width of the averaged maps of features=adaptive.
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
        pool_p: Norm = 2.0,
        features: Features = "flatten",
        grid: Annotated[int, Gt(0)] = 4,
        hidden: tuple[Annotated[int, Gt(0)], ...] = (128,),
        activation: Activation = "relu",
        init: Init = "he_normal",
        dropout: Rate = 0.25,
        batch_norm: bool = True,
    ) -> None:
        shape = image_shape("cnn", input_shape)
        settings = (blocks, pool, pool_p, features, grid, hidden, activation, init, dropout, batch_norm)
        super().__init__(shape, num_outputs, *settings)
