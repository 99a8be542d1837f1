"""The settings common to all losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What can be set for every loss.

    Args:
        reduction: what is minimised over a minibatch of B samples, the mean of their losses, or their sum: then gradients are B
            times as large, a learning rate for the mean is to be divided by B, and penalties count for a B-th. Losses and
            objectives are reported per sample either way.
    """

    reduction: Literal["mean", "sum"] = "mean"
