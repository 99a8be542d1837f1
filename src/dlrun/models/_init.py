"""Initialisation of weights and biases by name.

| name             | weights                                                                     |
| `default`        | PyTorch's own, biases too                                                   |
| `glorot_uniform` | uniform in +-sqrt(6 / (fan_in + fan_out)), Glorot & Bengio (2010), eq. 16   |
| `glorot_normal`  | normal with the same variance, 2 / (fan_in + fan_out)                       |
| `he_uniform`     | uniform in +-sqrt(6 / fan_in)                                               |
| `he_normal`      | normal with variance 2 / fan_in, He et al. (2015), section 2.2              |
| `lecun_normal`   | normal with variance 1 / fan_in                                             |
| `normal`         | normal with standard deviation 0.01                                         |
| `zeros`          | 0: no unit of a tanh network gets a gradient                                |
| `constant`       | 0.01: all units of a layer stay equal                                       |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn

Init = Literal[
    "default",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_normal",
    "normal",
    "zeros",
    "constant",
]

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)

_WEIGHTS: dict[str, Callable[[Tensor], Any]] = {
    "glorot_uniform": nn.init.xavier_uniform_,
    "glorot_normal": nn.init.xavier_normal_,
    "he_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity="relu"),
    "he_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "lecun_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="linear"),
    "normal": lambda weight: nn.init.normal_(weight, std=0.01),
    "zeros": nn.init.zeros_,
    "constant": lambda weight: nn.init.constant_(weight, 0.01),
}


def initialize(model: nn.Module, init: Init, bias: float = 0.0) -> None:
    """Sets weights of all dense and convolutional layers in `model` by `init` and their biases to `bias`."""
    if init == "default":
        return
    for module in model.modules():
        if isinstance(module, LAYERS):
            _WEIGHTS[init](module.weight)
            if module.bias is not None:
                nn.init.constant_(module.bias, bias)
