"""Small pictures and masks of one's own, as people have them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ((0, 0, 0), (200, 10, 10), (10, 200, 10), (10, 10, 200))

Mask = Callable[[np.ndarray], Image.Image]


def grey(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(ids.astype(np.uint8))


def binary(ids: np.ndarray) -> Image.Image:
    return grey(ids * 255)


def one_bit(ids: np.ndarray) -> Image.Image:
    return binary(ids).convert("1")


def sixteen_bits(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(ids.astype(np.uint16))


def with_palette(ids: np.ndarray) -> Image.Image:
    picture = grey(ids)
    picture.putpalette([c for colour in COLOURS for c in colour])
    return picture


def in_colours(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.array(COLOURS, np.uint8)[ids])


def with_alpha(ids: np.ndarray) -> Image.Image:
    return in_colours(ids).convert("RGBA")


def grey_in_rgb(ids: np.ndarray) -> Image.Image:
    return grey(ids).convert("RGB")


def class_name(k: int) -> str:
    return f"class {chr(97 + k)}" if k < 26 else f"class {k}"


def true_ids(index: int, classes: int, size: tuple[int, int]) -> np.ndarray:
    """A rectangle of each class on class 0."""
    rng = np.random.default_rng(index)
    ids = np.zeros(size, np.int64)
    for k in range(1, classes):
        top, left = (int(rng.integers(max(1, side // 2))) for side in size)
        ids[top : top + size[0] // 3 + 1, left : left + size[1] // 3 + 1] = k
    return ids


def make_pictures(
    root: Path,
    count: int = 6,
    *,
    classes: int = 2,
    mask: Mask = grey,
    sizes: Sequence[tuple[int, int]] = ((40, 56), (52, 44), (37, 61)),
    grey_pictures: bool = False,
) -> Path:
    """Write root/img/pK.png, root/mask/pK.png and root/names.txt; return root.

    A picture is its classes as shades with noise, so that there is something to learn.
    """
    for folder in ("img", "mask"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for k in range(count):
        ids = true_ids(k, classes, sizes[k % len(sizes)])
        noise = rng.integers(-15, 16, (*ids.shape, 3))
        pixels = (40 + ids[..., None] * 170 // max(1, classes - 1) + noise).clip(0, 255)
        picture = Image.fromarray(pixels.astype(np.uint8))
        (picture.convert("L") if grey_pictures else picture).save(root / "img" / f"p{k}.png")
        mask(ids).save(root / "mask" / f"p{k}.png")
    (root / "names.txt").write_text("".join(f"{class_name(k)}\n" for k in range(classes)))
    return root
