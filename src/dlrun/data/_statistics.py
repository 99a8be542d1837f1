"""Training statistics, and the normalisation of inputs and targets with them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

EXACT = 256  # squares of bytes whose sum stays below 2^24
FAST = 1 << 18  # values that stay in the processor's cache
ROWS = 1 << 16  # of a table, converted to float64 at a time


@dataclass(frozen=True)
class Statistics:
    """What inputs are normalised with, per channel (images, of values in [0, 1], and sequences) or per feature (vectors).

    Attributes:
        mean: subtracted.
        std: divided by; 1 where the training data are constant.
        fill: put in place of missing values (NaN) before normalisation; unused for images.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: tuple[float, ...]

    def unit(self) -> Statistics:
        """The same without centring and scaling (`data.normalize=unit`)."""
        return Statistics((0.0,) * len(self.mean), (1.0,) * len(self.std), self.fill)


def image_statistics(chunks: Iterable[Tensor]) -> Statistics:
    """Mean and standard deviation of each channel of uint8 images given in chunks (n, C, H, W), values divided by 255.

    The sums are exact, so that the result depends neither on the chunks nor on the thread count.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        shape = chunk.shape[1:]
        count += chunk.numel() // shape[0]
        for part in chunk.flatten(1).split(max(1, min(EXACT, FAST // math.prod(shape)))):
            # whole numbers below 2^24, as float32 holds them (see EXACT); NumPy, since a second thread gains nothing here
            values = part.numpy().astype(np.float32)
            total = total + torch.from_numpy(values.sum(0)).view(shape).to(torch.float64).sum((1, 2))
            values *= values
            squares = squares + torch.from_numpy(values.sum(0)).view(shape).to(torch.float64).sum((1, 2))
    mean = total / count
    std = (squares / count - mean**2).clamp(min=0).sqrt()
    return _statistics(mean / 255, std / 255)


def vector_statistics(vectors: Tensor) -> Statistics:
    """Mean and standard deviation of each column of (N, D), missing values (NaN) left out."""
    values = vectors.to(torch.float64)
    known = ~values.isnan()
    count = known.sum(0).clamp(min=1)
    mean = torch.where(known, values, 0.0).sum(0) / count
    std = torch.where(known, (values - mean) ** 2, 0.0).sum(0).div(count).sqrt()
    return _statistics(mean, std)  # equal float32 values have a std of exactly 0: their float64 sum is exact


def _statistics(mean: Tensor, std: Tensor) -> Statistics:
    mean_ = tuple(mean.tolist())
    return Statistics(mean_, tuple(s if s > 0 else 1.0 for s in std.tolist()), mean_)


class Normalizer:
    """Raw inputs to network inputs: (value - mean) / std.

    Args:
        statistics: see `Statistics`.
        dimensions: of one input: 3 for uint8 images, 2 for float sequences (C, L), 1 for float vectors.
        device: where the inputs lie.
    """

    def __init__(self, statistics: Statistics, dimensions: int, device: torch.device) -> None:
        self.is_image = dimensions == 3
        shape = (-1,) + (1,) * (dimensions - 1)
        dtype = torch.float64
        mean = torch.tensor(statistics.mean, dtype=dtype).view(shape)
        std = torch.tensor(statistics.std, dtype=dtype).view(shape)
        self.mean, self.std = mean.to(device), std.to(device)
        self.fill = torch.tensor(statistics.fill, dtype=dtype).view(shape).to(device)
        self.scale, self.shift = (1 / std).float().to(device), (-mean / std).float().to(device)
        self.byte_scale = (1 / (255 * std)).float().to(device)

    def __call__(self, raw: Tensor) -> Tensor:
        """uint8 images (N, C, H, W), or floats (N, D) or (N, C, L) with NaN where missing -> float32 of the same shape."""
        if self.is_image:
            return raw.to(torch.float32).mul_(self.byte_scale).add_(self.shift)
        out = torch.empty(raw.shape, dtype=torch.float32, device=raw.device)
        rows = max(1, ROWS // raw.shape[2]) if raw.dim() == 3 else ROWS
        for part, place in zip(raw.split(rows), out.split(rows), strict=True):
            values = part.to(torch.float64)  # a feature like the year has a mean far larger than its spread
            place.copy_((torch.where(values.isnan(), self.fill, values) - self.mean) / self.std)
        return out

    def unit(self, images: Tensor) -> Tensor:
        """The same for float images in [0, 1]."""
        return images * self.scale + self.shift


def standardize_targets(targets: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Real targets (N, size) in original units -> standardised float32; unchanged where `mean` is empty."""
    if not mean:
        return targets
    offset, scale = (torch.tensor(v, dtype=torch.float64) for v in (mean, std))
    return ((targets.to(torch.float64) - offset) / scale).float()
