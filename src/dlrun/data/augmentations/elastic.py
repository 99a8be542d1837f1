from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from dlrun.data._augmentation import AUGMENTATIONS, Augmentation
from dlrun.data.augmentations._geometry import Padding, between, middle_offsets, sample


@AUGMENTATIONS.register("elastic")
class Elastic(Augmentation):
    """Elastic distortion: every pixel is displaced by a smooth random field, like handwriting by an unsteady hand.

    Source: Simard, Steinkraus and Platt (2003), "Best practices for convolutional neural networks applied to visual
    document analysis", section 2 (alpha 34, sigma 4 on MNIST).

    Args:
        alpha: factor on the smoothed field, in pixels.
        sigma: standard deviation of the Gaussian that smooths a field uniform in [-1, 1), in pixels.
        padding: what comes in at the border: zero, or edge, the value at the border.

    Shapes: (N, C, H, W) float -> the same.
    """

    def __init__(
        self,
        *,
        alpha: Annotated[float, Ge(0)] = 34.0,
        sigma: Annotated[float, Gt(0), Le(1000)] = 4.0,
        padding: Padding = "zero",
    ) -> None:
        self.alpha, self.sigma = alpha, sigma
        self.padding = padding

    def __call__(self, inputs: Tensor, key: Tensor) -> Tensor:
        n, _, height, width = inputs.shape
        field = smooth(between(key, (n, 2, height, width), -1.0, 1.0), self.sigma) * self.alpha
        return sample(inputs, middle_offsets(height, width, inputs.device) + field, self.padding)


def smooth(fields: Tensor, sigma: float) -> Tensor:
    """Gaussian filter of (..., H, W), zero beyond the border."""
    height, width = fields.shape[-2:]
    return _gaussian(height, sigma, fields.device) @ (fields @ _gaussian(width, sigma, fields.device))


def _gaussian(size: int, sigma: float, device: torch.device) -> Tensor:
    """The filter as a symmetric matrix (size, size), cut off at 4 sigma: for small images much faster than convolving."""
    radius = int(4 * sigma + 0.5)
    kernel = torch.softmax(-0.5 * (torch.arange(-radius, radius + 1, device=device) / sigma) ** 2, 0)
    distance = torch.arange(size, device=device)[:, None] - torch.arange(size, device=device)
    return torch.where(distance.abs() <= radius, kernel[(distance + radius).clamp(0, 2 * radius)], 0.0)
