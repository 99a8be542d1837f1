"""`model=autoencoder`: dense and convolutional autoencoders."""

from __future__ import annotations

import math
from typing import Annotated, Any

from annotated_types import Gt
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._activations import Activation, activation_module
from dlrun.models._init import Init, initialize
from dlrun.models._shapes import image_shape
from dlrun.models._transposed import Layer, Transposed, halving, untied
from dlrun.registry import ConfigError


@MODELS.register("autoencoder")
class Autoencoder(nn.Module):
    """An encoder of convolutions (each halves the image) and dense layers down to a code, and a decoder mirroring it.

    The output is raw, for a loss on pixels: `l2`, or `bce` for a sigmoid output. For one hidden layer and activation
    sigmoid this is h = sigmoid(b + W x), x' = sigmoid(c + W* h) with code_activation sigmoid and loss `bce`.

    Source: Hinton & Salakhutdinov (2006) for deep ones. Differs: trained at once, without pretraining.

    Args:
        input_shape: shape of one input; given by the data.
        num_outputs: size of the raw output; given by the loss.
        code_size: number of units of the code.
        hidden: widths of the dense layers between the input (or the last maps) and the code.
        channels: filters of the 3x3 convolutions of stride 2 before the dense layers; an empty list for none.
        activation: of all layers but the code and the output.
        code_activation: of the code.
        tied: the decoder uses the encoder's weights, transposed, and biases of its own.
        init: initialisation of the weights; biases start at 0.

    Attributes:
        code: (N, code_size) of the last forward pass, for penalties on it; None before the first and in copies.

    Shapes: (N, *input_shape) -> (N, num_outputs), flattened pixels.

    Raises:
        ConfigError: convolutions on vectors, or a number of outputs that the decoder cannot have.
    """

    code: Tensor | None

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        code_size: Annotated[int, Gt(0)] = 30,
        hidden: tuple[Annotated[int, Gt(0)], ...] = (512, 256),
        channels: tuple[Annotated[int, Gt(0)], ...] = (),
        activation: Activation = "relu",
        code_activation: Activation = "linear",
        tied: bool = False,
        init: Init = "glorot_uniform",
    ) -> None:
        super().__init__()
        shape: tuple[int, ...] = (math.prod(input_shape),)
        if channels:
            shape = image_shape("autoencoder with channels", input_shape, instead="use model.channels=[]")
        layers = _encoder_layers(shape, channels, (*hidden, code_size))
        self.encoder = _encoder(layers, activation, code_activation)
        self.decoder = _decoder(layers, _outputs(shape, num_outputs, tied), activation, tied)
        self.code = None
        initialize(self, init)

    def encode(self, x: Tensor) -> Tensor:
        """(N, *input_shape) -> (N, code_size)."""
        return self.encoder(x)

    def decode(self, code: Tensor) -> Tensor:
        """(N, code_size) -> (N, num_outputs)."""
        return self.decoder(code)

    def forward(self, x: Tensor) -> Tensor:
        self.code = self.encode(x)
        return self.decode(self.code)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "code": None}  # part of a graph: can be neither copied nor pickled


def _encoder_layers(
    shape: tuple[int, ...], channels: tuple[int, ...], widths: tuple[int, ...]
) -> list[tuple[tuple[int, ...], Layer]]:
    """The layers with weights, each with the shape of its input (C, H, W) or (D,)."""
    layers: list[tuple[tuple[int, ...], Layer]] = []
    for filters in channels:
        layers.append((shape, halving(shape[0], filters)))
        shape = (filters, -(-shape[1] // 2), -(-shape[2] // 2))
    for width in widths:
        layers.append((shape, nn.Linear(math.prod(shape), width)))
        shape = (width,)
    return layers


def _encoder(
    layers: list[tuple[tuple[int, ...], Layer]], activation: Activation, code_activation: Activation
) -> nn.Sequential:
    parts: list[nn.Module] = []
    first_dense = next(layer for _, layer in layers if isinstance(layer, nn.Linear))
    for _, layer in layers:
        parts += [nn.Flatten()] * (layer is first_dense) + [layer, activation_module(activation)]
    return nn.Sequential(*parts[:-1], activation_module(code_activation))


def _decoder(
    layers: list[tuple[tuple[int, ...], Layer]], outputs: int, activation: Activation, tied: bool
) -> nn.Sequential:
    parts: list[nn.Module] = []
    for i, (shape, layer) in reversed(list(enumerate(layers))):
        dense = isinstance(layer, nn.Linear)
        wide = outputs if i == 0 else math.prod(shape) if dense else shape[0]
        size = None if dense else (shape[1], shape[2])
        parts.append(Transposed(layer, size) if tied else untied(layer, wide, size))
        if dense and len(shape) == 3:
            parts.append(nn.Unflatten(1, shape))
        parts.append(activation_module(activation))
    return nn.Sequential(*parts[:-1], nn.Flatten())


def _outputs(shape: tuple[int, ...], num_outputs: int, tied: bool) -> int:
    """Width, or number of maps, of the decoder's last layer."""
    if tied and num_outputs != math.prod(shape):
        raise ConfigError(
            f"model.tied: tied weights give {math.prod(shape)} outputs, one for each input, but the loss needs "
            f"{num_outputs}; use task=reconstruction with loss=l2 or bce, or model.tied=false"
        )
    if len(shape) == 1:
        return num_outputs
    maps, rest = divmod(num_outputs, shape[1] * shape[2])
    if rest:
        raise ConfigError(
            f"model.channels: a convolutional decoder gives a multiple of {shape[1]}x{shape[2]} outputs, but the loss "
            f"needs {num_outputs}; use task=reconstruction, or model.channels=[]"
        )
    return maps
