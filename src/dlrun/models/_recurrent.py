"""What `rnn`, `lstm` and `gru` have in common: recurrent layers over the steps of a sequence, and a linear head."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dlrun.models._dropout import Dropout
from dlrun.models._sequence import steps_of, to_steps

Readout = Literal["last", "mean"]


class Recurrent(nn.Module):
    """Recurrent layers h_t = f(x_t, h_(t-1)), h_0 = 0, with the same weights at each step, and a linear head.

    Bidirectional layers run a second time over the steps from the last to the first, with weights of their own (Schuster and
    Paliwal 1997), and give both states side by side. Dropout acts between the layers and on what the head reads, not from
    step to step (Zaremba et al. 2014); its masks are dlrun's, so each layer is a PyTorch module of its own.

    Args:
        name: of the model, for errors.
        layer: makes a recurrent layer of PyTorch from its number of input features.
        input_shape: see `dlrun.models._sequence`.
        num_outputs: size of the raw output.
        layers: number of recurrent layers.
        dropout: probability that a value is set to 0 in training.
        readout: what the head reads: last (the state after the last step; backwards, that after the first) or mean (over
            the steps).

    Shapes: (N, *input_shape) -> (N, num_outputs).
    """

    def __init__(
        self,
        name: str,
        layer: Callable[[int], nn.RNNBase],
        input_shape: tuple[int, ...],
        num_outputs: int,
        layers: int,
        dropout: float,
        readout: Readout,
    ) -> None:
        super().__init__()
        size = steps_of(name, input_shape)[1]
        self.layers, self.dropouts = nn.ModuleList(), nn.ModuleList()
        for _ in range(layers):
            self.layers.append(made := layer(size))
            self.dropouts.append(Dropout(dropout))
            size = made.hidden_size * (2 if made.bidirectional else 1)
        self.hidden, self.readout = made.hidden_size, readout
        self.head = nn.Linear(size, num_outputs)

    def states(self, x: Tensor) -> Tensor:
        """The states of the last layer at each step: (N, *input_shape) -> (N, steps, hidden), 2 hidden if bidirectional."""
        x = to_steps(x)
        with _no_half_precision_on_the_cpu(x):
            for number, layer in enumerate(self.layers):
                x = layer(x if number == 0 else self.dropouts[number - 1](x))[0]
        return x

    def forward(self, x: Tensor) -> Tensor:
        states = self.states(x)  # (N, T, D)
        if self.readout == "mean":
            read = states.mean(1)
        else:
            read = torch.cat([states[:, -1, : self.hidden], states[:, 0, self.hidden :]], 1)
        return self.head(self.dropouts[-1](read))


def _no_half_precision_on_the_cpu(x: Tensor) -> AbstractContextManager[Any]:
    """oneDNN has no LSTM in float16: such layers are in float32 there."""
    half = (
        x.device.type == "cpu" and torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.float16
    )
    return torch.autocast("cpu", enabled=False) if half else nullcontext()
