"""Counts of predictions per class, as tensors on their device and without synchronising it."""

from __future__ import annotations

import torch
from torch import Tensor

from dlrun.spec import TargetKind


def class_indices(values: Tensor, kind: TargetKind) -> Tensor:
    """Predictions or targets of kind class, binary or sign as int64 (N,) in the order of `TargetSpec.class_names`."""
    return values.long() if kind == "class" else (values.reshape(-1) > 0).long()


def confusion_matrix(predictions: Tensor, targets: Tensor, size: int) -> Tensor:
    """int64 (size, size) counts of class indices (see `class_indices`): row = true class, column = predicted class."""
    return count(targets.long() * size + predictions.long(), size * size).view(size, size)


def count(indices: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """int64 (size,): how often each index occurs, or the sum of its integer weights. Unlike `torch.bincount`, does not
    synchronise the device."""
    ones = torch.ones_like(indices) if weights is None else weights.to(indices.dtype)
    return torch.zeros(size, dtype=indices.dtype, device=indices.device).scatter_add_(0, indices, ones)
