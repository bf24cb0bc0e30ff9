"""Reading of masks: palette and grey pictures of ids, and pictures in colours."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from fastseg.data.classes import Classes, Value, listed_values
from fastseg.data.image import ImageError, check_keeps_values, labels_of, opened, upright
from fastseg.data.label_sets import Colour

MOST_COLOURS = 4096
"""Number of colours above which a picture is a photo rather than a mask."""


class Mask(NamedTuple):
    """A mask as it is stored.

    Attributes:
        values: the values that occur, ids or colours, and the number of pixels of each.
        places: the position of each pixel's value among them, integers (H, W).
        colours: the colours of the values, where the picture has a palette or grey values.
    """

    values: dict[Value, int]
    places: np.ndarray
    colours: list[Colour] | None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return (self.places.shape[1], self.places.shape[0])


def read_mask(path: str | Path) -> Mask:
    """Reads a mask with the values that it stores, upright.

    A picture in colours whose channels are all alike is taken for one of ids.

    Raises:
        ImageError: a file that cannot be read, or that holds a photo rather than a mask.
    """
    with opened(path) as (image, stored):
        if image.mode in ("RGB", "RGBA", "RGBX"):
            check_keeps_values(path, image)
            return _of_colours(path, np.asarray(upright(image).convert("RGB")))
        ids, palette = labels_of(path, image, stored)
    counts = np.bincount(ids.ravel(), minlength=256)
    found = np.flatnonzero(counts)
    table = np.zeros(256, np.uint8)
    table[found] = np.arange(len(found))
    if palette is None:
        colours = [(k, k, k) for k in found.tolist()]
    else:
        colours = [palette[k] for k in found if k < len(palette)]
    return Mask(
        {int(k): int(counts[k]) for k in found},
        table[ids],
        colours if len(colours) == len(found) else None,
    )


def _of_colours(path: str | Path, pixels: np.ndarray) -> Mask:
    red, green, blue = (pixels[..., k].astype(np.int32) for k in range(3))
    codes, places, counts = np.unique(
        red << 16 | green << 8 | blue, return_inverse=True, return_counts=True
    )
    if len(codes) > MOST_COLOURS:
        raise ImageError(f"{path}: has {len(codes)} colours, as a photo has and no mask")
    colours = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in codes]
    grey = all(c == (c[0], c[0], c[0]) for c in colours)
    values: list[Value] = [c[0] for c in colours] if grey else list(colours)
    return Mask(
        dict(zip(values, counts.tolist(), strict=True)),
        places.reshape(red.shape).astype(np.uint16),  # MOST_COLOURS are fewer
        colours if grey else None,
    )


def meanings(path: str | Path, mask: Mask, classes: Classes) -> list[int]:
    """Returns the class, or IGNORE, of each of a mask's values.

    Where the classes have colours and all of a palette's or grey picture's are among them, the
    colours count, else the ids.

    Raises:
        ImageError: a value that is no class.
    """
    known = classes.colours
    if known and mask.colours is not None and set(mask.colours) <= known.keys():
        return [known[colour] for colour in mask.colours]
    found = {value: classes.class_of(value) for value in mask.values}
    unknown = [value for value, k in found.items() if k is None]
    if unknown:
        raise ImageError(f"{path}: {_unknown(unknown, classes)}")
    return list(found.values())


def _unknown(values: list[Value], classes: Classes) -> str:
    text = f"holds {listed_values(values)}, which "
    text += "is no class" if len(values) == 1 else "are no classes"
    if isinstance(values[0], tuple) and not classes.colours:
        return f"{text}: masks in colours need a file of classes with their colours (--classes)"
    if isinstance(values[0], tuple):
        return f"{text}; the classes have {listed_values(classes.colours)}"
    ids = [v for v in classes.values if isinstance(v, int)]
    return f"{text}: the {len(classes)} classes have the ids {_ranges(ids)}, and 255 is left out"


def _ranges(ids: Iterable[int]) -> str:
    ids = sorted(ids)
    if len(ids) > 2 and ids == list(range(ids[0], ids[-1] + 1)):
        return f"{ids[0]} to {ids[-1]}"
    return listed_values(ids)


def read_classes_of_mask(path: str | Path, classes: Classes) -> Image.Image:
    """Reads a mask as classes.

    Returns:
        A picture of mode "L": the class of each pixel, or IGNORE.

    Raises:
        ImageError: the mask cannot be read, or holds a value that is no class.
    """
    mask = read_mask(path)
    table = np.array(meanings(path, mask, classes), np.uint8)
    return Image.fromarray(table[mask.places])
