"""The demonstration: a photo, its classes, a rough mask, and what the dense CRF makes of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from fastseg.data.overlay import legend_of, paint, with_title
from fastseg.ops import dense_crf, unary_from_labels

PHOTO_CREDIT = "china.jpg of scikit-learn, CC BY 2.0, by valse"

NAMES = ("sky", "lake", "tower", "trees")
COLOURS = ((90, 160, 255), (0, 90, 140), (220, 40, 40), (40, 170, 60))
SCRIBBLES = (
    ("sky", ((15, 60), (55, 40), (60, 120))),
    ("sky", ((270, 90), (330, 30), (460, 60))),
    ("lake", ((280, 220), (330, 195), (400, 195))),
    ("lake", ((8, 212), (45, 226))),
    ("tower", ((155, 30), (155, 105), (90, 130), (220, 130))),
    ("tower", ((80, 200), (240, 190))),
    ("tower", ((80, 230), (240, 225), (190, 275), (260, 255))),
    ("trees", ((15, 165), (15, 300), (180, 300))),
    ("trees", ((270, 290), (330, 255), (410, 270))),
    ("trees", ((450, 130), (445, 290))),
)
"""Labels and corners, in pixels of the photo, of the lines that a person might draw over it."""

WIDTH = 8
"""Width of a line."""

BLOCK = 24
"""Side of the squares of a rough mask made of classes."""

GT_PROB = 0.9
"""Probability that a pixel of the rough mask has the right label."""

OPACITY = 0.55
GREY = (90, 90, 90)


@dataclass(frozen=True)
class RoughMask:
    """A mask that the dense CRF is to refine.

    Attributes:
        labels: 0 where nobody says, else 1 + the label, uint8 (H, W).
        names: the labels' names.
        colours: the labels' colours.
        title: what it is.
    """

    labels: np.ndarray
    names: Sequence[str]
    colours: Sequence[Sequence[int]]
    title: str

    def energies(self) -> Tensor:
        """Returns the energies that the CRF begins with, float32 (labels, H, W)."""
        return unary_from_labels(torch.from_numpy(self.labels), len(self.names), GT_PROB)

    def refined(self, picture: Image.Image, quality: str = "high") -> np.ndarray:
        """Returns the labels of all pixels after the CRF with its defaults, uint8 (H, W)."""
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        q = dense_crf(self.energies(), pixels, quality=quality)
        return q.argmax(0).to(torch.uint8).numpy()


def photo_file() -> Path:
    """Returns the file of the photo that comes with the package."""
    return Path(str(files("fastseg"))) / "weights" / "photo.jpg"


def scribbles(size: tuple[int, int]) -> RoughMask:
    """Returns lines that a person might draw over the package's photo; size is (width, height)."""
    canvas = Image.new("L", size, 0)
    draw = ImageDraw.Draw(canvas)
    for name, corners in SCRIBBLES:
        draw.line(corners, NAMES.index(name) + 1, WIDTH, joint="curve")
    return RoughMask(np.array(canvas), NAMES, COLOURS, "scribbles")


def squares(
    labels: np.ndarray, names: Sequence[str], colours: Sequence[Sequence[int]]
) -> RoughMask:
    """Returns a rough mask of a picture's classes: of each square the class in its middle."""
    height, width = labels.shape
    rows, columns = (
        np.minimum(np.arange(side) // BLOCK * BLOCK + BLOCK // 2, side - 1)
        for side in (height, width)
    )
    coarse = labels[rows[:, None], columns]
    known, places = np.unique(coarse, return_inverse=True)
    if len(known) == 1:  # energies need two labels
        known = np.append(known, (known[0] + 1) % len(names))
    return RoughMask(
        (places.reshape(labels.shape) + 1).astype(np.uint8),
        [names[k] for k in known],
        [colours[k] for k in known],
        f"classes in squares of {BLOCK} pixels",
    )


def draw_demo(
    picture: Image.Image,
    labelings: dict[str, np.ndarray],
    classes: Sequence[str],
    palette: Sequence[Sequence[int]],
    rough: RoughMask,
    refined: np.ndarray,
) -> Image.Image:
    """Returns the picture of the demonstration: two rows of three, and the legends beside them.

    Args:
        picture: the photo.
        labelings: classes, uint8 (H, W), of the network and after the CRF, by their titles.
        classes: the classes' names by id.
        palette: their colours by id.
        rough: the rough mask.
        refined: its labels after the CRF, uint8 (H, W).
    """
    colours = np.asarray(palette, np.uint8)
    first = [("photo", picture.copy())]
    first += [(t, paint(picture, v, colours, OPACITY, False)) for t, v in labelings.items()]
    drawn = np.asarray([GREY, *rough.colours], np.uint8)
    sparse = Image.fromarray(drawn[rough.labels])
    over = Image.composite(
        sparse, picture, Image.fromarray((rough.labels > 0).astype(np.uint8) * 255)
    )
    own = drawn[1:]
    mask = Image.fromarray(own[refined])
    second = [
        (rough.title, over),
        ("after the dense CRF", paint(picture, refined, own, OPACITY, False)),
        ("as a mask", mask),
    ]
    legends = [
        legend_of(picture, list(labelings.values())[-1], classes, palette, 0.005),
        legend_of(picture, refined, rough.names, rough.colours, 0.0),
    ]
    side = max(legend.width for legend in legends)
    height = max(picture.height, *(legend.height for legend in legends))
    canvas = Image.new("RGB", (3 * picture.width + side, 2 * height), "white")
    for row, (parts, legend) in enumerate(zip((first, second), legends, strict=True)):
        for column, (title, part) in enumerate(parts):
            canvas.paste(with_title(part, title), (column * picture.width, row * height))
        canvas.paste(legend, (3 * picture.width, row * height))
    return canvas
