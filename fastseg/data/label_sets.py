"""Names and colours of the classes of common data sets.

A checkpoint of another project tells how many classes it knows, not which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastseg.data.camvid import CAMVID_CLASSES, CAMVID_PALETTE

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class LabelSet:
    """The meaning of a segmentation's ids.

    Attributes:
        name: the data set's name.
        classes: the classes' names by id.
        palette: RGB colours, 0 to 255, by id.
    """

    name: str
    classes: Sequence[str]
    palette: Sequence[Colour]


def voc_palette(colours: int = 256) -> list[Colour]:
    """Returns PASCAL VOC's colours: bits 0, 3, 6 of an id make red from the top bit down, ..."""

    def channel(k: int, first: int) -> int:
        return sum((k >> 3 * bit + first & 1) << 7 - bit for bit in range(3))

    return [(channel(k, 0), channel(k, 1), channel(k, 2)) for k in range(colours)]


VOC = LabelSet(
    "PASCAL VOC",
    (
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ),
    voc_palette(21),
)
CITYSCAPES = LabelSet(
    "Cityscapes",
    (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
)
CAMVID = LabelSet("CamVid", CAMVID_CLASSES, CAMVID_PALETTE)


def label_set(num_classes: int) -> LabelSet:
    """Returns VOC, Cityscapes or CamVid by the number of classes, or else numbered classes.

    Raises:
        ValueError: more than 256 classes, for which VOC has colours.
    """
    for known in (VOC, CITYSCAPES, CAMVID):
        if len(known.classes) == num_classes:
            return known
    if num_classes > 256:
        raise ValueError(f"num_classes must be at most 256, got {num_classes}")
    names = [f"class {k}" for k in range(num_classes)]
    return LabelSet("unknown", names, voc_palette(num_classes))
