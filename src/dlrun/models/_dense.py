"""Hidden dense layers, as the MLP and the heads of the convolutional networks have them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from dlrun.models._activations import Activation, activation_module
from dlrun.models._dropout import Dropout
from dlrun.models._norm import BatchNorm1d


def dense_layers(
    size: int, hidden: Sequence[int], activations: Sequence[Activation], dropout: float, batch_norm: bool
) -> nn.Sequential:
    """Dense layers of the widths `hidden` on vectors of `size` values, each: affine, batch norm, activation, dropout.

    Layer k has the parts `dense<k>`, `norm<k>` (with `batch_norm`), `activation<k>` and `dropout<k>`.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k, (width, activation) in enumerate(zip(hidden, activations, strict=True), start=1):
        layers[f"dense{k}"] = nn.Linear(size, width, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{k}"] = BatchNorm1d(width)
        layers[f"activation{k}"] = activation_module(activation)
        layers[f"dropout{k}"] = Dropout(dropout)
        size = width
    return nn.Sequential(layers)
