"""`model=googlenet`: torchvision's GoogLeNet."""

from __future__ import annotations

from dlrun.models import MODELS
from dlrun.models._dropout import Rate
from dlrun.models._torchvision import Adapted, ImageSize, first_layer, load_pretrained, scaled_shape


@MODELS.register("googlenet")
class GoogLeNet(Adapted):
    """GoogLeNet, from torchvision: nine inception blocks and a global average.

    Source: Szegedy et al. (2015), table 1. Differs: batch normalisation, 3x3 convolutions in place of 5x5 (both
    torchvision's), no auxiliary classifiers. With three channels and 1000 outputs it has 6,624,904 parameters.

    Args:
        input_shape: (channels, height, width), at least 15x15 pixels; given by the data.
        num_outputs: size of the raw output; given by the loss.
        dropout: probability that an averaged map is set to 0 in training.
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
        dropout: Rate = 0.2,
        pretrained: bool = False,
        freeze: bool = False,
        image_size: ImageSize | None = None,
    ) -> None:
        channels, _, _ = scaled_shape("googlenet", input_shape, image_size, smallest=15)
        from torchvision import models

        settings = {"aux_logits": False, "init_weights": True, "dropout": dropout}
        net = models.get_model("googlenet", weights=None, num_classes=num_outputs, **settings)
        net.conv1.conv = first_layer(net.conv1.conv, channels)
        if pretrained:
            load_pretrained(net, "googlenet", "conv1.conv", "fc")
            net.transform_input = channels == 3  # its weights were trained on colours centred otherwise
        super().__init__(net, "fc", image_size, freeze)
