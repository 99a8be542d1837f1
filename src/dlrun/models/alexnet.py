"""`model=alexnet`: torchvision's AlexNet."""

from __future__ import annotations

from dlrun.models import MODELS
from dlrun.models._dropout import Rate
from dlrun.models._torchvision import Adapted, ImageSize, first_layer, load_pretrained, scaled_shape


@MODELS.register("alexnet")
class AlexNet(Adapted):
    """AlexNet, from torchvision: five convolutions and three dense layers.

    Source: Krizhevsky (2014), "One weird trick for parallelizing convolutional neural networks", the one-tower variant
    of Krizhevsky et al. (2012). Differs: no local response normalisation; the last maps are averaged to 6x6. With three
    channels and 1000 outputs it has 61,100,840 parameters.

    Args:
        input_shape: (channels, height, width), at least 63x63 pixels; given by the data.
        num_outputs: size of the raw output; given by the loss.
        dropout: probability that an input of a hidden dense layer is set to 0 in training.
        pretrained: start from torchvision's ImageNet weights.
        freeze: train the head only.
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
        dropout: Rate = 0.5,
        pretrained: bool = False,
        freeze: bool = False,
        image_size: ImageSize | None = None,
    ) -> None:
        channels, _, _ = scaled_shape("alexnet", input_shape, image_size, smallest=63)
        from torchvision import models

        net = models.get_model("alexnet", weights=None, num_classes=num_outputs, dropout=dropout)
        net.features[0] = first_layer(net.features[0], channels)
        if pretrained:
            load_pretrained(net, "alexnet", "features.0", "classifier.6")
        super().__init__(net, "classifier.6", image_size, freeze)
