"""Pictures with their classes in colour."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastseg.data.overlay import class_shares, overlay, present_classes

CLASSES = ["sky", "road", "a class with a long name"]
PALETTE = [[128, 128, 128], [128, 64, 128], [0, 200, 0]]


def test_overlay_blends_and_names_the_classes():
    image = Image.new("RGB", (300, 200), (100, 100, 100))
    labels = np.zeros((200, 300), np.uint8)
    labels[:50] = 2
    drawn = overlay(image, {"ours": labels}, CLASSES, PALETTE, opacity=0.5)
    assert drawn.height == 200
    assert drawn.getpixel((10, 10)) == (50, 150, 50)
    assert drawn.getpixel((10, 100)) == (114, 114, 114)
    legend = np.asarray(drawn)[:, 300:]
    for colour, rows in ((PALETTE[0], slice(12, 25)), (PALETTE[2], slice(36, 49))):
        assert (legend[rows] == colour).all(-1).any(), "largest share first"
    assert not (legend == PALETTE[1]).all(-1).any(), "an absent class has no place in the legend"
    # Text is black on white and ends before the border.
    assert (legend[12:25, 30:] == 0).all(-1).any()
    assert (legend[:, -5:] == 255).all()


@pytest.mark.parametrize("size", [(1, 1), (4, 1000), (1000, 4), (2000, 1500)])
def test_legend_fits_any_picture(size):
    width, height = size
    labels = np.arange(width * height).reshape(height, width) % 3
    drawn = overlay(Image.new("RGB", size), {"ours": labels}, CLASSES, PALETTE)
    entries = len(np.unique(labels))
    assert drawn.height >= max(height, 24 * entries)
    assert width < drawn.width <= width + 250 + width // 2


def test_several_labelings_stand_beside_the_picture_and_the_legend_is_the_last_ones():
    image = Image.new("RGB", (300, 200), (100, 100, 100))
    labelings = {name: np.full((200, 300), k, np.uint8) for k, name in enumerate("abc")}
    two = dict(list(labelings.items())[:2])
    drawn = np.asarray(overlay(image, two, CLASSES, PALETTE, opacity=0.5))
    assert drawn.shape[0] == 200
    corners = [drawn[190, 300 * column + 290] for column in range(3)]
    np.testing.assert_array_equal(corners, [[100] * 3, [114] * 3, [114, 82, 114]])
    assert (drawn[:20, 300:330] == 0).all(-1).any(), "a title"
    assert not (drawn[:, :300] == 0).all(-1).any(), "the picture has none"

    drawn = np.asarray(overlay(image, labelings, CLASSES, PALETTE, opacity=0.5))
    assert drawn.shape[0] == 400
    below = [drawn[390, 300 * column + 290] for column in range(2)]
    np.testing.assert_array_equal(below, [[114, 82, 114], [50, 150, 50]])
    assert (drawn[:, 600:] == PALETTE[2]).all(-1).any()
    assert not (drawn[:, 600:] == PALETTE[1]).all(-1).any()


def test_shares():
    labels = np.array([[0, 0, 2, 2], [2, 0, 2, 0]])
    np.testing.assert_array_equal(class_shares(labels, 4), [0.5, 0, 0.5, 0])
    assert present_classes(np.array([0.0004, 0.3, 0.0, 0.6996])) == [3, 1]
