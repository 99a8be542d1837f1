"""Poolings of the areas of maps by name: `max`, `avg`, `sum` (average times area), `lp` (p-norm) and `stochastic`."""

from __future__ import annotations

from itertools import product
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from dlrun import streams
from dlrun.models._dropout import Dropout

Pool = Literal["max", "avg", "sum", "lp", "stochastic"]
Norm = Annotated[float, Ge(1), Le(1000)]  # p of `lp`
TINY = 1e-12


def areas(x: Tensor, size: int, stride: int, axes: int) -> Tensor:
    """The values of every area, row by row: (N, C, H, W) -> (N, C, H', W', size * size), or (N, C, L) -> (N, C, L', size)."""
    ends = [(length - size) // stride * stride + 1 for length in x.shape[2:]]  # from a first to a last area
    parts = []
    for place in product(range(size), repeat=axes):
        cut = [slice(None)] * 2 + [slice(start, start + end, stride) for start, end in zip(place, ends, strict=True)]
        parts.append(x[tuple(cut)])
    return torch.stack(parts, -1)


class SumPool(nn.Module):
    """Sum over each area.

    Args:
        size: height and width of an area, or its length.
        stride: step between areas.
        axes: 2 for images, 1 for signals.

    Shapes: (N, C, H, W) -> (N, C, (H - size) // stride + 1, (W - size) // stride + 1), or (N, C, L) likewise.
    """

    def __init__(self, size: int, stride: int, axes: int) -> None:
        super().__init__()
        self.size, self.stride, self.axes = size, stride, axes

    def forward(self, x: Tensor) -> Tensor:
        if self.axes == 1:
            return F.avg_pool1d(x, self.size, self.stride) * self.size
        return F.avg_pool2d(x, self.size, self.stride, divisor_override=1)

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}"


class LpPool(SumPool):
    """The p-norm (sum of |x|^p)^(1/p) over each area: 2 is the Euclidean norm; as p grows it becomes the largest |x|.

    Differs from `nn.LPPool2d`: |x| in place of x, no overflow at large p, and gradient 0 instead of NaN where a whole area
    is 0, as ReLUs leave it.

    Args:
        size, stride, axes: as of `SumPool`.
        p: of the norm, at least 1.

    Shapes: as `SumPool`.
    """

    def __init__(self, size: int, stride: int, axes: int, p: float) -> None:
        super().__init__(size, stride, axes)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if self.p == 2:
            return super().forward(x.square()).clamp_min(TINY).sqrt()
        values = areas(x.abs(), self.size, self.stride, self.axes)
        largest = values.detach().amax(-1, keepdim=True).clamp_min(TINY)  # cancels out; keeps powers below 1
        sums = (values / largest).pow(self.p).sum(-1, keepdim=True).clamp_min(TINY)
        return (largest * sums.pow(1 / self.p)).squeeze(-1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class StochasticPool(Dropout):
    """In training one value of each area, drawn with probabilities in proportion to the values; in evaluation their mean
    weighted by these probabilities.

    Source: Zeiler & Fergus (2013), sections 3.1 and 3.2, which takes values of ReLUs. Differs: values below 0 count as 0,
    and where none is above 0 all are equally probable. A dropout of all but one value of an area, so that its key is
    filled as that of any dropout.

    Args:
        size, stride, axes: as of `SumPool`.

    Shapes: as `SumPool`.
    """

    def __init__(self, size: int, stride: int, axes: int) -> None:
        super().__init__(1.0 - 1.0 / size**axes)
        self.values = size**axes
        self.size, self.stride, self.axes = size, stride, axes

    def forward(self, x: Tensor) -> Tensor:
        values = areas(x, self.size, self.stride, self.axes)
        weights = values.detach().clamp_min(0.0)
        weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0)
        if not self.training:
            return (values * weights).sum(-1) / weights.sum(-1)
        edges = weights.cumsum(-1)
        drawn = streams.uniform(self.key, values.shape[:-1]).unsqueeze(-1) * edges[..., -1:]
        chosen = (edges <= drawn).sum(-1, keepdim=True).clamp_max(self.values - 1)
        return torch.where(chosen == torch.arange(self.values, device=x.device), values, 0.0).sum(-1)

    def extra_repr(self) -> str:
        return f"size={self.size}, stride={self.stride}"


def pooling(kind: Pool, size: int, stride: int | None = None, axes: int = 2, p: float = 2.0) -> nn.Module:
    """A pooling over areas of `size` along each of `axes` axes (2 for images, 1 for signals).

    Args:
        kind: which.
        size: of an area.
        stride: step between areas; None: `size`.
        axes: 2 or 1.
        p: of `lp`.
    """
    stride = stride or size
    if kind == "max":
        return nn.MaxPool2d(size, stride) if axes == 2 else nn.MaxPool1d(size, stride)
    if kind == "avg":
        return nn.AvgPool2d(size, stride) if axes == 2 else nn.AvgPool1d(size, stride)
    if kind == "lp":
        return LpPool(size, stride, axes, p)
    return {"sum": SumPool, "stochastic": StochasticPool}[kind](size, stride, axes)
