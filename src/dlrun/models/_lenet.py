"""How images of any size get into the 32x32 pixels that LeNet-5 sees."""

from __future__ import annotations

from torch import nn

SIZE = 32  # of the image that C1 sees in the paper


def into_lenet(height: int, width: int) -> tuple[nn.Module, tuple[int, int], nn.Module]:
    """What stands before C1, the zeros around its input on each side, and what stands between S4 and C5.

    Images smaller than 32x32 are enlarged by the largest whole factor that keeps them within 32x32 (8x8: 4, 28x28: 1)
    and surrounded by zeros up to 32x32 (28x28: 2 on each side); of larger ones S4 is averaged down to 5x5.
    """
    factor = max(1, SIZE // max(height, width))
    padding = (_padding(height * factor), _padding(width * factor))
    s4 = [((size * factor + 2 * pad - 4) // 2 - 4) // 2 for size, pad in zip((height, width), padding, strict=True)]
    enlarge = nn.Upsample(scale_factor=factor) if factor > 1 else nn.Identity()
    return enlarge, padding, nn.AdaptiveAvgPool2d(5) if s4 != [5, 5] else nn.Identity()


def _padding(size: int) -> int:
    """Zeros on each side of an axis up to 32 (33 for an odd size: C1 and S2 then leave the last row out)."""
    return max(0, (SIZE - size + 1) // 2)
