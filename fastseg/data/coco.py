"""Class maps as run-length codes and data sets of COCO, which pycocotools reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """Returns COCO's compressed run-length code of a mask.

    Runs of 0 and 1 take turns, 0 first, down one column after the other. Their lengths, from the
    third on less the length before last, are written five bits a character, the lowest first.

    Args:
        mask: bool (H, W), not empty.

    Returns:
        {"size": [H, W], "counts": text}, which ``pycocotools.mask.decode`` takes.
    """
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(ends, prepend=0, append=flat.size)
    if flat[0]:
        runs = np.concatenate(([0], runs))
    rest = runs.astype(np.int64)
    rest[3:] -= runs[1:-2]
    characters, used, going = [], [], np.ones(len(rest), bool)
    while going.any():
        low, rest = rest & 31, rest >> 5
        more = np.where(low & 16, rest != -1, rest != 0)  # bit 4 of the last one is the sign
        characters.append(low + 32 * more + 48)
        used.append(going)
        going = going & more
    text = np.stack(characters, 1).astype(np.uint8)[np.stack(used, 1)]
    return {"size": list(mask.shape), "counts": text.tobytes().decode("ascii")}


def coco_dataset(
    pictures: Iterable[tuple[str, np.ndarray]], classes: Sequence[str]
) -> dict[str, Any]:
    """Returns a data set of COCO with one annotation for each class of each picture.

    Args:
        pictures: names of files, and their classes, uint8 (H, W).
        classes: names by id; the ids of the categories are theirs, from 0 on.

    Returns:
        images, categories and annotations, which ``pycocotools.coco.COCO`` reads from JSON. An
        annotation has segmentation (a run-length code), area, bbox, and iscrowd 0.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for name, labels in pictures:
        height, width = labels.shape
        images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
        for k in np.unique(labels).tolist():
            mask = labels == k
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            left, top = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(images),
                    "category_id": k,
                    "segmentation": encode_rle(mask),
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": k, "name": name} for k, name in enumerate(classes)]
    return {"images": images, "categories": categories, "annotations": annotations}
