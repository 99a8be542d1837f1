"""Targets of the class kinds in the forms that losses compute with."""

from __future__ import annotations

from torch import Tensor

from dlrun.spec import TargetSpec


def class_index(targets: Tensor, target: TargetSpec) -> Tensor:
    """Targets of kind class, binary or sign as an int64 index (N,): 1 is the positive class of the two-class kinds."""
    return targets.long() if target.kind == "class" else (targets[:, 0] > 0).long()


def zero_one(targets: Tensor, target: TargetSpec) -> Tensor:
    """Signs as {0, 1}; targets of all other kinds as they are."""
    return (targets + 1) / 2 if target.kind == "sign" else targets


def decide(scores: Tensor, target: TargetSpec) -> Tensor:
    """Scores (N, size) thresholded at 0: {-1, +1} for sign, else {0, 1}; a score of exactly 0 counts as positive."""
    positive = (scores >= 0).to(scores.dtype)
    return 2 * positive - 1 if target.kind == "sign" else positive
