"""The transform registry, and what a feature transform is: vectors to other vectors, fitted on the training samples."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dlrun.registry import ConfigError, Registry

TRANSFORMS = Registry("data.transform", "dlrun.data.transforms")


class Transform:
    """Turns the features of a sample into others, before normalisation, in training, evaluation and prediction alike.

    Inputs that are no vectors are flattened; images come as values in [0, 1]. Missing values are filled in before. The
    constructor takes settings and the context `input_shape`, refuses what does not fit, and sets `size`.

    Attributes:
        size: number of features that it gives.
    """

    size: int

    def fit(self, chunks: Iterable[Tensor]) -> None:
        """Learns from the training samples, given as float64 (n, D) piece by piece, as often as they are iterated over."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, D) float64 -> (n, size) float64."""
        raise NotImplementedError

    def names(self, names: Sequence[str]) -> Sequence[str]:
        """Names of the features that it gives, from those that it takes."""
        return [f"feature {i}" for i in range(self.size)]

    def state_dict(self) -> dict[str, Any]:
        """What `fit` has learnt: numbers, text and lists of them (tensors as `to_text` writes them)."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave."""


def to_text(tensor: Tensor) -> list[Any]:
    """A float64 tensor as [shape, text], the bits in base 64, so that checkpoints stay comparable by value."""
    return [list(tensor.shape), base64.b64encode(tensor.numpy().astype("<f8").tobytes()).decode()]


def from_text(saved: Sequence[Any]) -> Tensor:
    """The tensor that `to_text` wrote, bit for bit. Raises ValueError where it is damaged."""
    shape, text = saved
    values = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f8").astype(np.float64).reshape(shape)
    return torch.from_numpy(values)


def flat_size(input_shape: Sequence[int]) -> int:
    """Number of values of an input."""
    return int(np.prod(input_shape, dtype=np.int64))


def refuse(name: str, why: str) -> ConfigError:
    """The error of a transform that does not fit the data."""
    return ConfigError(f"data.transform.{name}: {why}")
