"""Sheets of many pictures: of data, and of what a network makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fastseg.data.classes import IGNORE, Classes

THUMB = (240, 180)
"""Largest width and height of a picture on a sheet."""

IGNORED_COLOUR = (96, 96, 96)
RIGHT, WRONG = (235, 235, 235), (220, 40, 40)
"""Colours of pixels that do not count, and that are right and wrong."""

OPACITY = 0.6
FONT = 12
MOST_NAMED = 40
"""Number of classes above which the legend ends."""


def coloured(ids: np.ndarray, classes: Classes) -> Image.Image:
    """Returns classes in their colours, those that do not count in grey.

    Args:
        ids: classes or IGNORE, uint8 (H, W).
        classes: their colours.
    """
    table = np.full((256, 3), IGNORED_COLOUR, np.uint8)
    table[: len(classes)] = classes.palette
    return Image.fromarray(table[ids])


def contact_sheet(
    items: Sequence[tuple[str, Image.Image, np.ndarray]], classes: Classes, columns: int = 6
) -> Image.Image:
    """Draws pictures with their masks over them, under their names, above the classes' colours.

    Args:
        items: (name, RGB picture, classes (H, W)) of each.
        classes: names and colours.
        columns: pictures beside each other.
    """
    cells = []
    for name, image, ids in items:
        image, mask = _small(image), _small(Image.fromarray(ids), nearest=True)
        drawn = Image.blend(image, coloured(np.asarray(mask), classes), OPACITY)
        cells.append((name, drawn))
    return _sheet(cells, classes, max(1, min(columns, len(cells))))


def comparison_sheet(
    rows: Sequence[tuple[Image.Image, np.ndarray, np.ndarray]], classes: Classes
) -> Image.Image:
    """Draws a row for each picture: itself, the truth, the prediction, and where these differ.

    Args:
        rows: (RGB picture, true classes (H, W), predicted classes (H, W)) of each.
        classes: names and colours.
    """
    cells = []
    for image, truth, predicted in rows:
        table = np.array((IGNORED_COLOUR, RIGHT, WRONG), np.uint8)
        error = np.where(truth == IGNORE, 0, np.where(truth == predicted, 1, 2))
        parts = {
            "picture": _small(image),
            "truth": _small(coloured(truth, classes), nearest=True),
            "prediction": _small(coloured(predicted, classes), nearest=True),
            "errors in red": _small(Image.fromarray(table[error]), nearest=True),
        }
        cells += parts.items()
    return _sheet(cells, classes, 4)


def _small(image: Image.Image, nearest: bool = False) -> Image.Image:
    scale = min(THUMB[0] / image.width, THUMB[1] / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if nearest else Image.Resampling.BILINEAR)


def _sheet(cells: Sequence[tuple[str, Image.Image]], classes: Classes, columns: int) -> Image.Image:
    font = ImageFont.load_default(FONT)
    step = (THUMB[0] + 8, THUMB[1] + 2 * FONT)
    rows = -(-len(cells) // columns)
    legend = _legend(classes, columns * step[0], font)
    canvas = Image.new("RGB", (columns * step[0], rows * step[1] + legend.height), "white")
    draw = ImageDraw.Draw(canvas)
    for k, (name, cell) in enumerate(cells):
        left, top = k % columns * step[0] + 4, k // columns * step[1]
        while len(name) > 4 and font.getlength(name) > THUMB[0]:
            name = f"…{name[2:]}"
        draw.text((left, top + 3), name, "black", font)
        canvas.paste(cell, (left, top + FONT + 8))
    canvas.paste(legend, (0, rows * step[1]))
    return canvas


def _legend(classes: Classes, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    shown = list(zip(classes.names, classes.palette, strict=True))[:MOST_NAMED]
    if len(classes) > MOST_NAMED:
        shown.append((f"and {len(classes) - MOST_NAMED} others", (255, 255, 255)))
    places, left, top = [], 4, 4
    for name, _ in shown:
        length = int(font.getlength(name)) + 3 * FONT
        if left + length > width and left > 4:
            left, top = 4, top + 2 * FONT
        places.append((left, top))
        left += length
    legend = Image.new("RGB", (width, top + 2 * FONT), "white")
    draw = ImageDraw.Draw(legend)
    for (name, colour), (left, top) in zip(shown, places, strict=True):
        draw.rectangle((left, top, left + FONT, top + FONT), colour, outline="black")
        draw.text((left + 1.5 * FONT, top), name, "black", font)
    return legend
