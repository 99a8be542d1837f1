"""`model=resnet18` and the like: torchvision's residual networks."""

from __future__ import annotations

from typing import Literal

from torch import nn

from dlrun.models import MODELS
from dlrun.models._torchvision import Adapted, ImageSize, first_layer, load_pretrained, scaled_shape
from dlrun.registry import ConfigError


@MODELS.register("resnet")
class ResNet(Adapted):
    """The residual networks of ImageNet, from torchvision, with the stem adapted to small images.

    Source: He et al. (2016), section 4.1 and table 1. Differs: in bottleneck blocks the 3x3 convolution strides
    (torchvision); the small stem is a 3x3 convolution of stride 1 without pooling. With the ImageNet stem, three
    channels and 1000 outputs ResNet-18 has 11,689,512 parameters, ResNet-50 25,557,032.

    Args:
        input_shape: (channels, height, width); given by the data.
        num_outputs: size of the raw output; given by the loss.
        depth: number of layers with weights.
        stem: imagenet (7x7, stride 2, pooling), small (3x3, stride 1, no pooling), or auto: small for images of at most
            64x64, unless pretrained.
        pretrained: start from torchvision's ImageNet weights; needs the ImageNet stem.
        freeze: train the head only; batch norm then keeps its statistics.
        image_size: scale images to this height and width first; null leaves them.

    Shapes: (N, C, H, W) -> (N, num_outputs).

    Raises:
        ConfigError: the data does not give images, or pretrained weights do not fit or cannot be fetched.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        depth: Literal[18, 34, 50, 101, 152] = 18,
        stem: Literal["auto", "imagenet", "small"] = "auto",
        pretrained: bool = False,
        freeze: bool = False,
        image_size: ImageSize | None = None,
    ) -> None:
        channels, height, width = scaled_shape("resnet", input_shape, image_size, smallest=1)
        if stem == "small" and pretrained:
            raise ConfigError("model.stem: got 'small'; pretrained weights need 'imagenet' or 'auto'")
        from torchvision import models

        net = models.get_model(f"resnet{depth}", weights=None, num_classes=num_outputs)
        if stem == "small" or (stem == "auto" and not pretrained and max(height, width) <= 64):
            net.conv1 = first_layer(net.conv1, channels, kernel_size=3, stride=1, padding=1)
            net.maxpool = nn.Identity()
        else:
            net.conv1 = first_layer(net.conv1, channels)
        if pretrained:
            load_pretrained(net, f"resnet{depth}", "conv1", "fc")
        super().__init__(net, "fc", image_size, freeze)
