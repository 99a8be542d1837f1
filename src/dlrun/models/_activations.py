"""Activation functions by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Activation = Literal[
    "linear",
    "sign",
    "heaviside",
    "sigmoid",
    "tanh",
    "relu",
    "softplus",
    "leaky_relu",
    "elu",
    "gelu",
    "silu",
]


class Sign(nn.Module):
    """-1 below 0, +1 from 0 on; its gradient is 0 everywhere.

    Shapes: any -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        # torch.sign(0) is 0; the outer sign moves it to +1 and keeps the (zero) gradient in the graph.
        return torch.sign(torch.sign(x) + 0.5)


class Heaviside(Sign):
    """0 below 0, 1 from 0 on; its gradient is 0 everywhere.

    Shapes: any -> the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (super().forward(x) + 1.0)


_MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "sign": Sign,
    "heaviside": Heaviside,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}


def activation_module(name: Activation) -> nn.Module:
    """A fresh module for the activation `name`."""
    return _MODULES[name]()
