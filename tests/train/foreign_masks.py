"""Folders in CamVid's layout with masks of somebody's own, as users have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

Mask = Callable[[np.ndarray], Image.Image]
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [17] * 756


def grey(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(ids.astype(np.uint8))


def with_palette(ids: np.ndarray) -> Image.Image:
    picture = grey(ids)
    picture.putpalette(PALETTE)
    return picture


def in_colours(ids: np.ndarray) -> Image.Image:
    return with_palette(ids).convert("RGB")


# By what they are: the number of classes, the mask of ids, the pictures' size.
KINDS: dict[str, tuple[int, Mask, tuple[int, int]]] = {
    "0 and 1": (2, grey, (48, 64)),
    "0 and 255": (2, lambda ids: grey(ids * 255), (48, 64)),
    "1 and 2": (2, lambda ids: grey(ids + 1), (48, 64)),
    "five classes": (5, grey, (48, 64)),
    "ten classes": (10, grey, (48, 64)),
    "void is 255": (5, lambda ids: grey(np.where(ids == 4, 255, ids)), (48, 64)),
    "nineteen classes": (19, grey, (48, 64)),
    "twelve classes, other pictures": (12, grey, (64, 64)),
    "palette": (12, with_palette, (48, 64)),
    "colours": (4, in_colours, (48, 64)),
    "colours with alpha": (4, lambda ids: in_colours(ids).convert("RGBA"), (48, 64)),
    "one bit": (2, lambda ids: grey(ids * 255).convert("1"), (48, 64)),
    "16 bits": (12, lambda ids: Image.fromarray(ids.astype(np.uint16)), (48, 64)),
    "nothing marked": (1, grey, (48, 64)),
}


def make_foreign(root: Path, kind: str, images: int = 6) -> Path:
    """Write pictures and masks of a kind for each split; return ``root``."""
    classes, mask, (height, width) = KINDS[kind]
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for index in range(images):
            ids = rng.integers(0, classes, (height, width))
            ids[0, :classes] = np.arange(classes)  # each of them occurs
            picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(picture).save(root / split / f"{index}.png")
            mask(ids).save(root / f"{split}annot" / f"{index}.png")
    return root
