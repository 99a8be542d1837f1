"""Histograms as TensorBoard stores them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 64
MOST_VALUES = 1 << 18


class Histogram(NamedTuple):
    """A histogram with the fields of TensorBoard's `HistogramProto`: `bucket` counts values up to `bucket_limit`."""

    min: float
    max: float
    num: int
    sum: float
    sum_squares: float
    bucket_limit: list[float]
    bucket: list[float]


def histogram(values: Tensor) -> Histogram | None:
    """Histogram of the finite values in 64 equal bins from the least to the greatest; None if there is none.

    Of tensors above 2**18 values an evenly spaced part is counted. Uses integer counts only, so that it is allowed in
    deterministic mode on CUDA, where `torch.histc` is not.

    Shapes: any.
    """
    flat = values.detach().flatten()
    flat = flat[:: -(-flat.numel() // MOST_VALUES) or 1].float()
    if not torch.isfinite(flat.sum()):
        flat = flat[torch.isfinite(flat)]
    if flat.numel() == 0:
        return None
    least, most = flat.aminmax()
    exact = flat.double()
    low, high, total, squares = torch.stack([least.double(), most.double(), exact.sum(), exact @ exact]).tolist()
    if high == low:
        return Histogram(low, high, len(flat), total, squares, [high], [float(len(flat))])
    # in double precision: the width of the range of two large floats may overflow
    bins = exact.sub_(low).mul_(BINS / (high - low)).clamp_(max=BINS - 1).to(torch.uint8)
    counts = torch.bincount(bins, minlength=BINS).tolist()
    width = (high - low) / BINS
    limits = [low + width * (i + 1) for i in range(BINS - 1)] + [high]
    return Histogram(low, high, len(flat), total, squares, limits, [float(c) for c in counts])
