"""`model=gru`: a network of gated recurrent units."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import nn

from dlrun.models import MODELS
from dlrun.models._dropout import Rate
from dlrun.models._recurrent import Readout, Recurrent


@MODELS.register("gru")
class GRU(Recurrent):
    """Gated recurrent units with a linear head; images are read row by row.

    r, z = sigmoid(U x_t + W h_(t-1) + b), n = tanh(U x_t + b + r (W h_(t-1) + c)), h_t = (1 - z) n + z h_(t-1).

    Source: Cho et al. (2014), section 2.3. Differs: r acts after the matrix product (cuDNN, PyTorch), and 1 - z weighs
    the new state. Both directions: Schuster and Paliwal (1997). Dropout: Zaremba et al. (2014), section 3.1.

    Args:
        input_shape: (channels, height, width): height steps; (channels, length): length steps; or (values,): one step for
            each; given by the data.
        num_outputs: size of the raw output; given by the loss.
        hidden: size of the state of each layer (and direction).
        layers: number of recurrent layers, each reading the states of the one before.
        bidirectional: a second pass from the last step to the first, with weights of its own.
        dropout: probability that a value is set to 0 in training, between the layers and before the head.
        readout: what the head reads: last (the state after the last step; backwards, that after the first) or mean (over
            the steps).

    Shapes: (N, C, H, W), (N, C, L) or (N, D) -> (N, num_outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        hidden: Annotated[int, Gt(0)] = 128,
        layers: Annotated[int, Gt(0)] = 1,
        bidirectional: bool = False,
        dropout: Rate = 0.0,
        readout: Readout = "last",
    ) -> None:
        def layer(size: int) -> nn.RNNBase:
            return nn.GRU(size, hidden, batch_first=True, bidirectional=bidirectional)

        super().__init__("gru", layer, input_shape, num_outputs, layers, dropout, readout)
