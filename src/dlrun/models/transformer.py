"""`model=transformer`: a small encoder of attention layers."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from dlrun.models import MODELS
from dlrun.models._activations import Activation, activation_module
from dlrun.models._dropout import Dropout, Rate
from dlrun.models._init import Init, initialize
from dlrun.models._sequence import steps_of, to_steps
from dlrun.models._shapes import describe
from dlrun.registry import ConfigError


class SelfAttention(nn.Module):
    """Several heads of softmax(Q K' / sqrt(d)) V on the same tokens, combined by a linear map.

    Source: Vaswani et al. (2017), sections 3.2.1 and 3.2.2. Written out instead of PyTorch's fused kernels, whose backward
    pass is not deterministic on CUDA, and whose dropout is not dlrun's.

    Args:
        width: of a token.
        heads: each sees width / heads values of a query, key and value.
        dropout: probability that a weight is set to 0 in training.

    Shapes: (N, T, width) -> (N, T, width).
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.dropout = Dropout(dropout)
        self.combine = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Attention weights (N, heads, T, T), whose rows sum to 1, and values (N, heads, T, d)."""
        projected = self.query_key_value(x).unflatten(2, (3, self.heads, -1))  # (N, T, 3, heads, d)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (N, heads, T, d) each
        scores = query @ key.transpose(2, 3) / math.sqrt(key.shape[3])
        return scores.softmax(3), value

    def forward(self, x: Tensor) -> Tensor:
        weights, value = self.split(x)
        mixed = self.dropout(weights) @ value  # (N, heads, T, d)
        return self.combine(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)).

    Source: Vaswani et al. (2017), section 3.1. Differs: layer normalisation comes first (Xiong et al. 2020), so that deep
    encoders train without a warm-up of the learning rate.

    Args:
        width: of a token.
        heads: of the attention.
        hidden: width of the hidden layer of the MLP.
        activation: of the MLP.
        dropout: on attention weights, hidden units, and what is added to x.

    Shapes: (N, T, width) -> (N, T, width).
    """

    def __init__(self, width: int, heads: int, hidden: int, activation: Activation, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), activation_module(activation), Dropout(dropout), nn.Linear(hidden, width)
        )
        self.dropout1, self.dropout2 = Dropout(dropout), Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout1(self.attention(self.norm1(x)))
        return x + self.dropout2(self.mlp(self.norm2(x)))


@MODELS.register("transformer")
class Transformer(nn.Module):
    """A transformer encoder: tokens embedded linearly, plus positions, layers of attention and MLP, linear head.

    Tokens are the rows of an image, or its patches; the steps of a sequence; the values of a vector.

    Source: Vaswani et al. (2017), section 3; patches and class token: Dosovitskiy et al. (2021), section 3.1. Differs from
    the former: layer normalisation before each part (Xiong et al. 2020), and one more before the head.

    Args:
        input_shape: (channels, height, width), (channels, length) or (values,); given by the data.
        num_outputs: size of the raw output; given by the loss.
        patch: side of the square patches of an image that are its tokens; null: its rows are.
        width: of a token inside the encoder.
        heads: of each attention; they divide the width.
        layers: number of attention layers, each with an MLP.
        mlp_ratio: hidden units of each MLP for one of the width.
        activation: of the MLPs; relu in Vaswani et al., gelu in Dosovitskiy et al.
        positions: learned (a parameter) or sinusoidal (Vaswani et al., section 3.5).
        readout: what the head reads: mean (over the tokens) or class_token (one that is put before the others).
        init: initialisation of the weights of linear maps; biases start at 0.
        dropout: probability that a value is set to 0 in training: tokens with their positions, and see `Block`.

    Shapes: (N, C, H, W), (N, C, L) or (N, D) -> (N, num_outputs).

    Raises:
        ConfigError: the heads do not divide the width, patches do not divide the images, or the data gives none.
    """

    positions: Tensor
    not_weights = ("positions",)  # added like a bias: penalties and weight decay leave them alone

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        *,
        patch: Annotated[int, Gt(0)] | None = None,
        width: Annotated[int, Gt(0)] = 64,
        heads: Annotated[int, Gt(0)] = 4,
        layers: Annotated[int, Gt(0)] = 2,
        mlp_ratio: Annotated[float, Gt(0)] = 2.0,
        activation: Activation = "gelu",
        positions: Literal["learned", "sinusoidal"] = "learned",
        readout: Literal["mean", "class_token"] = "mean",
        init: Init = "glorot_uniform",
        dropout: Rate = 0.0,
    ) -> None:
        super().__init__()
        if width % heads:
            allowed = ", ".join(str(n) for n in range(1, width + 1) if width % n == 0)
            raise ConfigError(f"model.heads: {heads} heads do not divide a width of {width}; allowed: {allowed}")
        self.patch = patch
        tokens, features = _patches_of(input_shape, patch) if patch else steps_of("transformer", input_shape)
        self.embedding = nn.Linear(features, width)
        self.class_token = nn.Parameter(torch.zeros(width)) if readout == "class_token" else None
        tokens += readout == "class_token"
        if positions == "learned":
            self.positions = nn.Parameter(torch.empty(tokens, width))
        else:
            self.register_buffer("positions", sinusoids(tokens, width), persistent=False)
        self.dropout = Dropout(dropout)
        hidden = max(1, round(mlp_ratio * width))
        self.blocks = nn.ModuleList(Block(width, heads, hidden, activation, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        initialize(self, init)
        for parameter in (self.class_token, self.positions):
            if isinstance(parameter, nn.Parameter):
                nn.init.normal_(parameter, std=0.02)

    def tokens(self, x: Tensor) -> Tensor:
        """The tokens of the first layer: (N, *input_shape) -> (N, T, width)."""
        x = self.embedding(_to_patches(x, self.patch) if self.patch else to_steps(x))
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
        return self.dropout(x + self.positions)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x.mean(1) if self.class_token is None else x[:, 0])

    def attention(self, x: Tensor) -> list[Tensor]:
        """The attention weights of each layer: (N, *input_shape) -> (N, heads, T, T) each; a row is what one token takes
        from each of the others, and sums to 1."""
        x, found = self.tokens(x), []
        for block in self.blocks:
            assert isinstance(block, Block)
            found.append(block.attention.split(block.norm1(x))[0])
            x = block(x)
        return found


def sinusoids(tokens: int, width: int) -> Tensor:
    """Positions (tokens, width): sin(t / 10000^(2i / width)) in column 2i, cos of the same in column 2i + 1."""
    column = torch.arange(width)
    angle = torch.arange(tokens)[:, None] / 10_000 ** (2 * (column // 2) / width)
    return torch.where(column % 2 == 0, angle.sin(), angle.cos())


def _patches_of(input_shape: tuple[int, ...], patch: int) -> tuple[int, int]:
    """(number of patches, values of each)."""
    if len(input_shape) != 3:
        raise ConfigError(
            f"model.patch: got {patch}; patches need images (channels, height, width), the data gives "
            f"{describe(input_shape)}; set it to null"
        )
    channels, height, width = input_shape
    if height % patch or width % patch:
        allowed = ", ".join(str(n) for n in range(1, min(height, width) + 1) if height % n == 0 == width % n)
        raise ConfigError(f"model.patch: {patch} does not divide {describe(input_shape)}; allowed: {allowed}, or null")
    return (height // patch) * (width // patch), channels * patch**2


def _to_patches(x: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) -> (N, patches, C * patch * patch), from the top left row by row."""
    x = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (N, C, H / p, p, W / p, p)
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
