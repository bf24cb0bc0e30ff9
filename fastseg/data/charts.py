"""Curves as pictures, drawn by Pillow alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

SIZE = (480, 280)
"""Width and height of a curve's picture."""

MARGIN = (64, 28)
FONT = 12
FEW = 60
"""Number of points from which on only the last is marked."""


def draw_curve(
    points: Sequence[tuple[float, float]],
    title: str,
    colour: tuple[int, int, int],
    *,
    from_zero: bool = True,
    logarithmic: bool = False,
    mark: float | None = None,
) -> Image.Image:
    """Returns the picture of a curve.

    Args:
        points: its points, in the order of x; of none only the axes are drawn.
        title: the text above.
        colour: RGB colour of the curve.
        from_zero: whether the vertical axis begins at 0 or below, rather than at the lowest point.
        logarithmic: whether equal distances on the horizontal axis are equal ratios.
        mark: x at which a line stands, such as the best.
    """
    font = ImageFont.load_default(FONT)
    panel = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(panel)
    (left, top), right, bottom = MARGIN, SIZE[0] - 16, SIZE[1] - MARGIN[1]
    draw.text((left, 6), title, "black", font)
    draw.line((left, top, left, bottom, right, bottom), "black")
    if not points:
        return panel
    xs, ys = zip(*points, strict=True)
    low, high = min(ys), max(ys)
    if from_zero:
        low, high = min(0.0, low), max(high, 1e-9)
    elif high - low < 1e-9:
        low, high = low - 1e-3, high + 1e-3
    scale = math.log if logarithmic else float
    first, last = scale(xs[0]), scale(xs[-1])
    if last <= first:
        last = first + 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (scale(x) - first) / (last - first) * (right - left)
        return across, bottom - (y - low) / (high - low) * (bottom - top)

    digits = 3 if from_zero else 4
    for share in (0.0, 0.5, 1.0):
        value = low + share * (high - low)
        _, height = place(xs[0], value)
        draw.line((left, height, right, height), (225, 225, 225))
        draw.text((left - 6, height), f"{value:.{digits}g}", "black", font, anchor="rm")
    if mark is not None:
        across, _ = place(mark, low)
        draw.line((across, top, across, bottom), (160, 160, 160))
        draw.text((across + 4, bottom - 4), f"{mark:g}", "black", font, anchor="ls")
    for x in dict.fromkeys((xs[0], xs[-1])):
        draw.text((place(x, low)[0], bottom + 5), f"{x:g}", "black", font, anchor="ma")
    line = [place(x, y) for x, y in points]
    if len(line) > 1:
        draw.line(line, colour, width=2)
    for x, y in line if len(line) < FEW else line[-1:]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
    return panel
