"""`model=mlp`: a multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._activations import Activation
from dlrun.models._dense import dense_layers
from dlrun.models._dropout import Dropout, Rate
from dlrun.models._init import Init, initialize
from dlrun.registry import ConfigError


@MODELS.register("mlp")
class MLP(nn.Module):
    """A multilayer perceptron h(k) = g(W(k) h(k-1) + b(k)) with a linear head; images are flattened.

    Each hidden layer is affine, batch norm (optional), activation, dropout, in this order. The head is never activated:
    losses take raw outputs.

    Args:
        input_shape: shape of one input; given by the data.
        num_outputs: size of the raw output; given by the loss.
        hidden: widths of the hidden layers, from input to output; an empty list leaves an affine map.
        activation: one activation for all hidden layers, or a list with one for each.
        init: initialisation of the weights.
        init_bias: where biases start (not with init=default, which draws them too).
        dropout: probability that a hidden unit is set to 0 in training.
        input_dropout: the same for each input (Srivastava et al. 2014, appendix A.4, use 0.2 beside 0.5 for hidden units).
        batch_norm: batch normalisation before each activation; the layers before it have no bias.
        weights: the weights to start from, written down: a matrix for each layer (the head last) with a row for each unit;
            null: `init`.
        biases: the biases to start from, a list for each layer; null: `init` and `init_bias`.

    Shapes: (N, *input_shape) -> (N, num_outputs).

    Raises:
        ConfigError: the list of activations is not as long as that of the hidden layers, or weights or biases that are given do
            not have the shapes of the layers.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        hidden: tuple[Annotated[int, Gt(0)], ...] = (512, 256),
        activation: Activation | tuple[Activation, ...] = "relu",
        init: Init = "default",
        init_bias: float = 0.0,
        dropout: Rate = 0.2,
        input_dropout: Rate = 0.0,
        batch_norm: bool = False,
        weights: tuple[tuple[tuple[float, ...], ...], ...] | None = None,
        biases: tuple[tuple[float, ...], ...] | None = None,
    ) -> None:
        super().__init__()
        activations = (activation,) * len(hidden) if isinstance(activation, str) else activation
        if len(activations) != len(hidden):
            raise ConfigError(
                f"model.activation: {len(activations)} activations for {len(hidden)} hidden layers; "
                "give one name for all, or a list with one for each of model.hidden"
            )
        sizes = (math.prod(input_shape), *hidden)
        self.input_dropout = Dropout(input_dropout)
        self.hidden = dense_layers(sizes[0], hidden, activations, dropout, batch_norm)
        self.head = nn.Linear(sizes[-1], num_outputs)
        initialize(self, init, init_bias)
        named = [pair for m in self.modules() if isinstance(m, nn.Linear) for pair in m.named_parameters()]
        start_from("model.weights", weights, [p for name, p in named if name == "weight"])
        start_from("model.biases", biases, [p for name, p in named if name == "bias"])

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.input_dropout(x.flatten(1))))


def start_from(key: str, given: Sequence[Any] | None, parameters: Sequence[nn.Parameter]) -> None:
    """Copies written-down values into the parameters, layer by layer. Raises ConfigError where shapes differ."""
    if given is None:
        return
    wanted = [tuple(parameter.shape) for parameter in parameters]
    found = [(len(layer), *{len(row) for row in layer if isinstance(row, tuple | list)}) for layer in given]
    if found != wanted:
        raise ConfigError(f"{key}: got shapes {shapes(found)}; this network has {shapes(wanted)} (a row for each unit)")
    with torch.no_grad():
        for layer, parameter in zip(given, parameters, strict=True):
            parameter.copy_(torch.tensor(layer, dtype=parameter.dtype))


def shapes(sizes: Sequence[Sequence[int]]) -> str:
    return ", ".join("x".join(map(str, size)) for size in sizes) or "none"
