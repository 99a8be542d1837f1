"""Shared pieces of the augmentations: random numbers per sample, and resampling of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dlrun import streams

Padding = Literal["zero", "edge"]
GRID_PADDING = {"zero": "zeros", "edge": "border"}


def subkeys(key: Tensor, count: int) -> list[Tensor]:
    """`count` independent keys from one, which is then not used itself."""
    return list(streams.bits(key, (count, 2)).unbind(0))


def between(key: Tensor, shape: Sequence[int], low: float, high: float) -> Tensor:
    """Uniform random numbers in [low, high)."""
    return streams.uniform(key, shape) * (high - low) + low


def per_sample(values: Tensor) -> Tensor:
    """(N,) -> (N, 1, 1, 1), to be combined with images."""
    return values.view(-1, 1, 1, 1)


def warp_affine(images: Tensor, matrix: Tensor, centre: Tensor | None = None, *, padding: Padding = "zero") -> Tensor:
    """Resamples images: the pixel at offset v from the middle takes the value at offset `matrix @ v + centre`.

    Args:
        images: (N, C, H, W).
        matrix: (N, 2, 2), acting on offsets (x, y) in pixels.
        centre: (N, 2), offset (x, y) in pixels of the point that becomes the middle; None: the middle stays.
        padding: see `sample`.
    """
    n, height, width = len(images), *images.shape[-2:]
    offsets = middle_offsets(height, width, images.device).flatten(1)  # (2, HW)
    places = (matrix.reshape(-1, 2) @ offsets).view(n, 2, height, width)
    return sample(images, places if centre is None else places + centre.view(n, 2, 1, 1), padding)


def sample(images: Tensor, places: Tensor, padding: Padding = "zero") -> Tensor:
    """Values at `places`, interpolated bilinearly.

    Args:
        images: (N, C, H, W).
        places: (N, 2, H, W), offsets (x, y) in pixels from the middle.
        padding: beyond the border, zero or (edge) the value at the border.
    """
    grid = (places / half_sides(images).view(2, 1, 1)).permute(
        0, 2, 3, 1
    )  # (N, H, W, 2) in grid_sample's unit of length
    return F.grid_sample(images, grid, mode="bilinear", padding_mode=GRID_PADDING[padding], align_corners=False)


def half_sides(images: Tensor) -> Tensor:
    """(2,): half the width and half the height in pixels; filled on the device, since a copy to it would wait for it."""
    return torch.cat(
        [torch.full((1,), side / 2, device=images.device) for side in (images.shape[-1], images.shape[-2])]
    )


def middle_offsets(height: int, width: int, device: torch.device) -> Tensor:
    """(2, H, W): offset (x, y) of each pixel's centre from the middle of the image."""
    x = torch.arange(width, device=device) - (width - 1) / 2
    y = torch.arange(height, device=device) - (height - 1) / 2
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])
