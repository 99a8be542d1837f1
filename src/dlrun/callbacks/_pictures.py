"""Pictures for TensorBoard, drawn with Pillow (matplotlib takes half a second to import): grids of images, filters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from PIL import Image

INK, PAPER, GAP = (32, 32, 32), (255, 255, 255), 6
FONT_SIZE = 12
LINE = FONT_SIZE + 3


@lru_cache(maxsize=1)  # it is decoded each time
def font(size: int = FONT_SIZE) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def for_display(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Undoes the normalisation: (N, C, H, W) as the network sees it -> values in [0, 1] on the CPU."""
    shape = (1, -1, 1, 1)
    return (inputs.float().cpu() * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)).clamp(0, 1)


def grid(tiles: Tensor, captions: Sequence[str] = (), columns: int | None = None, tile_size: int = 72) -> Image.Image:
    """Images side by side, small ones enlarged, each over its caption of one or more lines.

    Shapes: tiles (N, C, H, W) in [0, 1], C 1 or 3 (of other numbers the first channel is shown).
    """
    from PIL import Image, ImageDraw

    pictures = [_picture(tile, tile_size) for tile in tiles]
    columns = columns or min(len(pictures), max(4, math.ceil(math.sqrt(len(pictures)))))
    rows = math.ceil(len(pictures) / columns)
    width, height = (
        pictures[0].width + GAP,
        pictures[0].height + GAP + (LINE * (captions[0].count("\n") + 1) if captions else 0),
    )
    sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = GAP + (i % columns) * width, GAP + (i // columns) * height
        sheet.paste(picture, (x, y))
        for number, line in enumerate(captions[i].split("\n") if captions else ()):
            at = (x + picture.width / 2, y + picture.height + 2 + number * LINE)
            draw.text(at, shortened(line, picture.width), INK, font(), anchor="mt")
    return sheet


def _picture(tile: Tensor, size: int) -> Image.Image:
    """(C, H, W) in [0, 1] -> RGB, small images enlarged by a whole factor to about `size` pixels, large ones halved as
    often as needed to stay under twice that."""
    from PIL import Image

    rgb = tile if tile.shape[0] == 3 else tile[:1].expand(3, -1, -1)
    pixels = (rgb * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()  # (H, W, 3)
    picture = Image.fromarray(pixels)
    factor = round(size / max(picture.size))
    if factor >= 1:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    while max(picture.size) >= 2 * size:
        picture = picture.reduce(2)
    return picture


def filters(model: nn.Module, input_shape: tuple[int, ...], most: int = 64) -> Tensor | None:
    """The first layer's weights as images in [0, 1], zero mid-grey, each filter scaled by its largest weight.

    None if the first layer with weights is neither a convolution nor a dense layer on whole images.

    Shapes: (filters, C, h, w) of a convolution; (units, *input_shape) of a dense layer.
    """
    first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    if first is None or len(input_shape) != 3:
        return None
    weight = first.weight.detach()[:most].float().cpu()
    if isinstance(first, nn.Linear):
        if first.in_features != math.prod(input_shape):
            return None
        weight = weight.view(-1, *input_shape)
    scale = weight.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    return 0.5 + 0.5 * weight / scale


def text_width(text: str) -> int:
    return math.ceil(font().getlength(text))


def shortened(text: str, width: int) -> str:
    """Cut to `width` pixels, with dots where something is missing."""
    if text_width(text) <= width:
        return text
    while text and text_width(text + "…") > width:
        text = text[:-1]
    return text + "…"
