"""Pictures with their classes in colour, and legends beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def overlay(
    image: Image.Image,
    labelings: Mapping[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    opacity: float = 0.55,
    *,
    outlines: bool = False,
    least_share: float = 0.0005,
) -> Image.Image:
    """Draws a picture with its classes in colour and, on the right, a legend with their shares.

    Args:
        image: an RGB picture.
        labelings: class ids, integers (H, W) of the image's size, by their titles. With several of
            them, the picture and each of them stand side by side, four in two rows, under their
            titles; the legend's shares are those of the last one.
        classes: the classes' names by id.
        palette: RGB colours by id.
        opacity: opacity of the colours, 0 to 1.
        outlines: whether the borders between classes are drawn in full colour.
        least_share: share of the picture from which a class stands in the legend.

    Returns:
        An RGB picture, wider than its parts by the legend, and higher only if the legend is.
    """
    colours = np.asarray(palette, dtype=np.uint8)
    parts = {
        title: paint(image, labels, colours, opacity, outlines)
        for title, labels in labelings.items()
    }
    if len(parts) > 1:
        parts = {
            "picture": image,
            **{title: with_title(part, title) for title, part in parts.items()},
        }
    columns = 2 if len(parts) == 4 else len(parts)
    rows = -(-len(parts) // columns)

    legend = legend_of(image, list(labelings.values())[-1], classes, palette, least_share)
    width, height = columns * image.width, rows * image.height
    canvas = Image.new("RGB", (width + legend.width, max(height, legend.height)), "white")
    for k, part in enumerate(parts.values()):
        canvas.paste(part, (k % columns * image.width, k // columns * image.height))
    canvas.paste(legend, (width, 0))
    return canvas


def paint(
    image: Image.Image, labels: np.ndarray, colours: np.ndarray, opacity: float, outlines: bool
) -> Image.Image:
    """Returns a picture under its classes in colour.

    Args:
        image: an RGB picture.
        labels: class ids, integers (H, W) of its size.
        colours: RGB colours by id, uint8 (classes, 3).
        opacity: opacity of the colours, 0 to 1.
        outlines: whether the borders between classes are drawn in full colour.
    """
    full = colours[labels]
    painted = Image.blend(image, Image.fromarray(full), opacity)
    if not outlines:
        return painted
    border = np.zeros(labels.shape, bool)
    for one, other in (
        ((slice(1, None),), (slice(None, -1),)),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differs = labels[one] != labels[other]
        border[one] |= differs
        border[other] |= differs
    return Image.fromarray(np.where(border[..., None], full, np.asarray(painted)))


def legend_of(
    image: Image.Image,
    labels: np.ndarray,
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    least_share: float,
) -> Image.Image:
    """Returns the names, colours and shares of the classes in a picture, as a picture.

    The arguments are those of :func:`overlay`, of one labelling.
    """
    shares = class_shares(labels, len(classes))
    present = present_classes(shares, least_share) or [int(shares.argmax())]
    names = [f"{classes[k]} {shares[k]:.1%}" for k in present]
    size = _text_size(image)
    font = ImageFont.load_default(size)
    width = 4 * size + max(int(font.getlength(name)) for name in names)
    legend = Image.new("RGB", (width, (2 * len(names) + 1) * size), "white")
    draw = ImageDraw.Draw(legend)
    for row, (k, name) in enumerate(zip(present, names, strict=True)):
        left, top = size, (2 * row + 1) * size
        draw.rectangle((left, top, left + size, top + size), tuple(palette[k]), outline="black")
        draw.text((left + 1.5 * size, top + size / 2), name, "black", font, anchor="lm")
    return legend


def with_title(part: Image.Image, title: str) -> Image.Image:
    """Writes a title into a picture's corner; returns the picture."""
    size = _text_size(part)
    font = ImageFont.load_default(size)
    draw = ImageDraw.Draw(part)
    draw.rectangle((0, 0, font.getlength(title) + size, 1.7 * size), "white")
    draw.text((size / 2, 0.85 * size), title, "black", font, anchor="lm")
    return part


def _text_size(image: Image.Image) -> int:
    return max(12, min(image.size) // 28)


def class_shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns the fraction of pixels of each class, float64 (num_classes,)."""
    return np.bincount(labels.ravel(), minlength=num_classes) / labels.size


def present_classes(shares: np.ndarray, least: float = 0.0005) -> list[int]:
    """Returns the ids of classes of at least a share, by default 0.1 % rounded, largest first."""
    return [int(k) for k in np.argsort(-shares, kind="stable") if shares[k] >= least]
