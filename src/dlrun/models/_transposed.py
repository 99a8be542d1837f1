"""The layers of a decoder that mirrors an encoder, with weights of their own or the encoder's transposed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def halving(in_channels: int, out_channels: int) -> nn.Conv2d:
    """The convolution of an encoder: (N, in_channels, H, W) -> (N, out_channels, ceil(H / 2), ceil(W / 2))."""
    return nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)


class Transposed(nn.Module):
    """The transpose of an encoder's layer: its weight, used in the other direction, and a bias of its own.

    The layer is only referred to: the shared weight is a parameter of the encoder alone, and its gradient is the sum
    over both uses.

    Args:
        layer: a dense layer or a `halving` convolution.
        size: (height, width) of the maps to give back; None for a dense layer.

    Shapes: as `untied`, with as many outputs as `layer` has inputs.
    """

    def __init__(self, layer: Layer, size: tuple[int, int] | None) -> None:
        super().__init__()
        self._layer = (layer,)  # in a tuple: not registered as a part
        self.extra = _extra(size) if size else 0
        self.bias = nn.Parameter(torch.zeros(layer.weight.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        layer = self._layer[0]
        if isinstance(layer, nn.Linear):
            return F.linear(x, layer.weight.t(), self.bias)
        return F.conv_transpose2d(x, layer.weight, self.bias, 2, 1, self.extra)


def untied(layer: Layer, outputs: int, size: tuple[int, int] | None) -> nn.Module:
    """A layer with weights of its own from the outputs of `layer` back to maps of `size`.

    Shapes: (N, out_features) -> (N, outputs), or (N, out_channels, H', W') -> (N, outputs, *size).
    """
    if size is None or isinstance(layer, nn.Linear):
        return nn.Linear(layer.weight.shape[0], outputs)
    return nn.ConvTranspose2d(layer.out_channels, outputs, 3, 2, 1, _extra(size))


def _extra(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns to add to 2 n - 1: images of 2 n - 1 and of 2 n pixels both give maps of n."""
    return 1 - size[0] % 2, 1 - size[1] % 2
