"""What torchvision's networks need to fit our data: stem, head, enlarged images, pretrained weights, a frozen body."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dlrun.models._dropout import replace_dropout
from dlrun.models._shapes import image_shape
from dlrun.registry import ConfigError

ImageSize = Annotated[int, Gt(0)]


class Adapted(nn.Module):
    """A torchvision network as we use it: with our dropout, images enlarged first if asked for, and the body frozen or
    not. Batch norm in a frozen body keeps its statistics.

    Args:
        net: the network.
        head: name of its last layer inside `net`, which is never frozen.
        image_size: height and width to which images are scaled (bilinear); None leaves them.
        freeze: whether only the head is trained.

    Shapes: (N, C, H, W) -> (N, num_outputs).
    """

    def __init__(self, net: nn.Module, head: str, image_size: int | None, freeze: bool) -> None:
        super().__init__()
        replace_dropout(net)
        self.scale = nn.Upsample((image_size, image_size), mode="bilinear") if image_size else nn.Identity()
        self.net = net
        self.freeze = freeze
        if freeze:
            for name, parameter in net.named_parameters():
                parameter.requires_grad = name.startswith(f"{head}.")

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.scale(x))

    def train(self, mode: bool = True) -> Adapted:
        super().train(mode)
        for module in self.net.modules() if self.freeze else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def scaled_shape(
    model: str, input_shape: tuple[int, ...], image_size: int | None, smallest: int
) -> tuple[int, int, int]:
    """(channels, height, width) that the network sees. Raises ConfigError where that is under `smallest` pixels."""
    channels = image_shape(model, input_shape)[0]
    if image_size and image_size < smallest:
        raise ConfigError(f"model.image_size: got {image_size}; {model} needs at least {smallest}")
    if image_size:
        return channels, image_size, image_size
    return image_shape(model, input_shape, smallest, f"; model.image_size={smallest} enlarges them")


def first_layer(conv: nn.Conv2d, channels: int, **changes: Any) -> nn.Conv2d:
    """`conv` for images of `channels` channels, with other settings where `changes` says so, initialised as torchvision
    initialises ResNet and VGG; `conv` itself if nothing changes."""
    if conv.in_channels == channels and not changes:
        return conv
    old = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding")}
    new = nn.Conv2d(channels, conv.out_channels, bias=conv.bias is not None, **{**old, **changes})
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new


def load_pretrained(net: nn.Module, architecture: str, stem: str, head: str) -> None:
    """Loads torchvision's ImageNet weights of `architecture` into `net`.

    The head is left as it is unless it has ImageNet's 1000 outputs. The first layer of another number of channels gets
    the mean filter over colours, scaled so that its response to a grey image stays the same.

    Raises:
        ConfigError: the file cannot be read or fetched.
    """
    from torchvision.models import get_model_weights

    weights: Any = get_model_weights(architecture).DEFAULT
    try:
        state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ConfigError(
            f"model.pretrained: cannot load {weights.url} ({reason}); put that file into {folder}"
        ) from None
    own = net.state_dict()
    state = {name: value for name, value in state.items() if name in own}  # without auxiliary classifiers
    if own[f"{head}.weight"].shape != state[f"{head}.weight"].shape:
        state.update({f"{head}.{name}": own[f"{head}.{name}"] for name in ("weight", "bias")})
    channels = own[f"{stem}.weight"].shape[1]
    if channels != 3:
        state[f"{stem}.weight"] = state[f"{stem}.weight"].sum(1, keepdim=True).expand(-1, channels, -1, -1) / channels
    net.load_state_dict(state)
