"""Poolings of image areas by name: `max`, `avg`, `sum` (average times area) and `lp` (Euclidean norm)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Pool = Literal["max", "avg", "sum", "lp"]


class SumPool2d(nn.Module):
    """Sum over each area.

    Args:
        size: height and width of the area.
        stride: step between areas.

    Shapes: (N, C, H, W) -> (N, C, (H - size) // stride + 1, (W - size) // stride + 1).
    """

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.stride = size, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, self.size, self.stride, divisor_override=1)


class L2Pool2d(SumPool2d):
    """Euclidean norm over each area.

    Shapes: as `SumPool2d`.
    """

    def forward(self, x: Tensor) -> Tensor:
        # The root has no gradient at 0, where a whole area of ReLUs is silent; nn.LPPool2d gives NaN there.
        return super().forward(x.square()).clamp_min(1e-12).sqrt()


def pooling(kind: Pool, size: int, stride: int | None = None) -> nn.Module:
    """A pooling over areas of `size` x `size`; `stride` defaults to `size`."""
    modules = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d, "sum": SumPool2d, "lp": L2Pool2d}
    return modules[kind](size, stride or size)
