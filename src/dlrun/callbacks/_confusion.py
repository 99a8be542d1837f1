"""The confusion matrix as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dlrun.callbacks._pictures import FONT_SIZE, GAP, INK, PAPER, font, shortened, text_width

if TYPE_CHECKING:
    from PIL import Image

LIGHTEST, DARKEST = (240, 244, 250), (8, 69, 148)
LONGEST_NAME = 90  # pixels


def confusion_picture(counts: Tensor, names: Sequence[str]) -> Image.Image:
    """Each row (true class) is shaded by the share of its samples in each column (predicted class); the counts of up to
    20 classes are written in.

    Shapes: counts (K, K).
    """
    from PIL import Image, ImageDraw

    size = len(names)
    written = size <= 20
    cell = 40 if written else max(1, 600 // size)
    margin = 24 + max(text_width(shortened(n, LONGEST_NAME)) for n in names) if written else 24
    share = (counts / counts.sum(1, keepdim=True).clamp_min(1)).unsqueeze(-1)  # (K, K, 1)
    colours = torch.tensor(LIGHTEST) * (1 - share) + torch.tensor(DARKEST) * share
    cells = Image.fromarray(colours.round().to(torch.uint8).numpy())
    sheet = Image.new("RGB", (margin + size * cell + GAP, margin + size * cell + GAP), PAPER)
    sheet.paste(cells.resize((size * cell, size * cell), Image.Resampling.NEAREST), (margin, margin))
    if written:
        draw = ImageDraw.Draw(sheet)
        for row, column in counts.nonzero().tolist():
            ink = PAPER if share[row, column] > 0.5 else INK
            middle = (margin + (column + 0.5) * cell, margin + (row + 0.5) * cell)
            draw.text(middle, str(int(counts[row, column])), ink, font(), anchor="mm")
    _label_axes(sheet, names if written else (), margin, cell, size)
    return sheet


def _label_axes(sheet: Image.Image, names: Sequence[str], margin: int, cell: int, size: int) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(sheet)
    middle = margin + size * cell / 2
    for edge in range(margin, margin + size * cell + 1, cell) if names else ():
        draw.line((edge - 1, margin, edge - 1, margin + size * cell), PAPER)
        draw.line((margin, edge - 1, margin + size * cell, edge - 1), PAPER)
    draw.text((middle, 4), "predicted", INK, font(), anchor="mt")
    _draw_upright(sheet, "true", 4, middle)
    texts = [shortened(name, LONGEST_NAME) for name in names]
    level = all(text_width(text) < cell - 4 for text in texts)
    for i, text in enumerate(texts):
        centre = margin + (i + 0.5) * cell
        draw.text((margin - 4, centre), text, INK, font(), anchor="rm")
        if level:
            draw.text((centre, margin - 4), text, INK, font(), anchor="mb")
        else:
            _draw_upright(sheet, text, round(centre) - FONT_SIZE // 2, margin - 4, from_below=True)


def _draw_upright(sheet: Image.Image, text: str, x: int, y: float, from_below: bool = False) -> None:
    """Text turned by 90 degrees, reading upwards; `y` is its middle, or its lower end."""
    from PIL import Image, ImageDraw

    strip = Image.new("RGB", (text_width(text) + 2, FONT_SIZE + 4), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, INK, font())
    strip = strip.rotate(90, expand=True)
    sheet.paste(strip, (x, round(y - strip.height if from_below else y - strip.height / 2)))
