"""A check that a folder with CamVid's layout holds CamVid, and not masks of other classes.

Ids are names without meaning: masks of other classes, such as 0 and 1, would train as sky and
building, and the checkpoint would say so. The labels, the pictures' shapes, and files that list
classes tell the difference.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image

from fastseg.data.camvid import CAMVID_CLASSES, CAMVID_IGNORE, CAMVID_PALETTE, CamVid
from fastseg.data.image import read_image

MOST_IMAGES = 701
"""Number of CamVid's labelled images."""

LEAST_IDS, LEAST_IDS_OF_MANY, MANY = 5, 10, 20
"""Fewest ids in the labels of a split: of few pictures, of many, and how many are many. Most
pictures of CamVid have ten ids by themselves."""

ASPECT_RATIO = 4 / 3
"""Width of CamVid's pictures by their height."""

CLASS_FILE = re.compile(r".*(class|label|code|names).*\.(txt|csv|json)|.*\.(names|ya?ml)", re.I)
"""Pattern of the names of files in which data sets list their classes."""


class NotCamVidError(ValueError):
    """An error for a folder with other data than CamVid's."""


def check_is_camvid(dataset: CamVid) -> None:
    """Reads all pictures and labels of a split, and refuses those of other data.

    Args:
        dataset: the split.

    Raises:
        NotCamVidError: a picture or label that cannot be read or does not fit the other; ids,
            palettes, shapes or a number of pictures that CamVid does not have; or a file beside
            them that lists other classes.
    """
    try:
        _check_class_files(dataset.root)
        if len(dataset) > MOST_IMAGES:
            raise ValueError(f"{len(dataset)} pictures, where CamVid has {MOST_IMAGES} in all")
        sizes, ids = set(), set()
        for index in range(len(dataset)):
            label = dataset.load_label(index)
            dataset.check_sizes(index, read_image(dataset.images[index]), label)
            _check_palette(label, dataset.labels[index])
            sizes.add(label.size)
            ids |= _ids(label)
        _check_sizes(sizes)
        _check_ids(ids, LEAST_IDS if len(dataset) < MANY else LEAST_IDS_OF_MANY)
    except ValueError as error:
        raise NotCamVidError(
            f"{dataset.root} has CamVid's folders, but is not CamVid: {error}. Other masks would "
            f"be taken for {', '.join(CAMVID_CLASSES)}: name their classes with --classes"
        ) from error


def _check_class_files(root: Path) -> None:
    for path in sorted(root.iterdir()):
        if CLASS_FILE.fullmatch(path.name) and path.is_file():
            text = path.read_text(errors="replace").lower()
            known = [name for name in CAMVID_CLASSES if name in text]
            if 2 * len(known) < len(CAMVID_CLASSES):
                raise ValueError(f"{path} lists other classes")


def _ids(label: Image.Image) -> set[int]:
    return {k for k, pixels in enumerate(label.histogram()) if pixels}


def _check_palette(label: Image.Image, path: Path) -> None:
    if label.mode != "P":
        return
    colours = np.reshape(label.getpalette("RGB"), (-1, 3))
    for k in sorted(_ids(label)):
        colour = tuple(colours[k].tolist()) if k < len(colours) else None
        expected = CAMVID_PALETTE[k] if k < CAMVID_IGNORE else (0, 0, 0)
        if colour not in (expected, (k, k, k)):
            raise ValueError(f"{path} has a palette of its own, in which id {k} is {colour}")


def _check_sizes(sizes: set[tuple[int, int]]) -> None:
    shown = ", ".join(f"{width}x{height}" for width, height in sorted(sizes)[:3])
    if len(sizes) > 1:
        raise ValueError(f"its pictures have several sizes, {shown}, CamVid's have one")
    ((width, height),) = sizes
    if abs(width / height / ASPECT_RATIO - 1) > 0.05:
        raise ValueError(f"its pictures are {shown}, CamVid's 4:3, such as 480x360")


def _check_ids(ids: set[int], least: int) -> None:
    last = CAMVID_IGNORE - 1
    if len(ids) < least or max(ids) < last:
        raise ValueError(
            f"its labels have the ids {', '.join(map(str, sorted(ids)))}, CamVid's all of 0 to "
            f"{last} and {CAMVID_IGNORE} where unlabelled"
        )
