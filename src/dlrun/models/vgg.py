"""`model=vgg16`: torchvision's VGG networks."""

from __future__ import annotations

from typing import Literal

from dlrun.models import MODELS
from dlrun.models._dropout import Rate
from dlrun.models._torchvision import Adapted, ImageSize, first_layer, load_pretrained, scaled_shape


@MODELS.register("vgg")
class VGG(Adapted):
    """VGG, from torchvision: 3x3 convolutions only, five poolings, three dense layers.

    Source: Simonyan & Zisserman (2015), table 1. Differs: the last maps are averaged to 7x7, so that images of any size
    from 32x32 fit. With three channels and 1000 outputs VGG-16 has 138,357,544 parameters.

    Args:
        input_shape: (channels, height, width), at least 32x32 pixels; given by the data.
        num_outputs: size of the raw output; given by the loss.
        depth: number of layers with weights.
        batch_norm: batch normalisation after each convolution.
        dropout: probability that a hidden dense unit is set to 0 in training.
        pretrained: start from torchvision's ImageNet weights.
        freeze: train the head only; batch norm then keeps its statistics.
        image_size: scale images to this height and width first; null leaves them.

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images, they are too small, or pretrained weights cannot be fetched.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        depth: Literal[11, 13, 16, 19] = 16,
        batch_norm: bool = False,
        dropout: Rate = 0.5,
        pretrained: bool = False,
        freeze: bool = False,
        image_size: ImageSize | None = None,
    ) -> None:
        channels, _, _ = scaled_shape("vgg", input_shape, image_size, smallest=32)
        from torchvision import models

        name = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
        net = models.get_model(name, weights=None, num_classes=num_outputs, dropout=dropout)
        net.features[0] = first_layer(net.features[0], channels)
        if pretrained:
            load_pretrained(net, name, "features.0", "classifier.6")
        super().__init__(net, "classifier.6", image_size, freeze)
