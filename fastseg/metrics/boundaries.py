"""Where the boundaries of label maps are, and what lies near them: exact, in plain PyTorch."""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.formulas import is_counted
from fastseg.metrics.metric import check_ids, check_maps

Unit = Literal["diagonal", "pixels"]
"""What distances are given in: shares of the image's diagonal, or pixels."""

VOID = -1
"""Label of pixels that do not count."""


def check_distance(name: str, distance: float, unit: Unit) -> None:
    """Checks a distance and its unit.

    Raises:
        ValueError: the distance is not positive and finite, or is more than a diagonal; an unknown
            unit.
        TypeError: the distance is no number.
    """
    if not isinstance(distance, Real):
        raise TypeError(f"{name} must be a number, got {distance!r}")
    if not 0 < distance < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {distance}")
    if unit not in ("diagonal", "pixels"):
        raise ValueError(f"unit must be 'diagonal' or 'pixels', got {unit!r}")
    if unit == "diagonal" and distance > 1:
        raise ValueError(
            f"{name} must be at most 1, the image's whole diagonal, got {distance}; "
            "of pixels give unit='pixels'"
        )


def in_pixels(distance: float, unit: Unit, size: torch.Size) -> float:
    """Returns a distance in pixels of an image of (..., H, W), no longer than both sides."""
    height, width = size[-2:]
    pixels = distance * math.hypot(height, width) if unit == "diagonal" else distance
    return min(pixels, height + width)  # no pixels lie farther apart


def class_maps(
    prediction: Tensor, label: Tensor, num_classes: int, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Returns both maps as int32 (N, H, W), VOID where the label is to be ignored.

    Raises:
        ValueError: the shapes differ or are neither (H, W) nor (N, H, W), or an id is no class.
        TypeError: a tensor that is not of integers.
    """
    check_maps(prediction, label)
    if label.dim() not in (2, 3):
        raise ValueError(
            f"prediction and label must be (H, W) or (N, H, W), got {tuple(label.shape)}"
        )
    check_ids(prediction, label, num_classes, ignore_index)
    if ignore_index is not None:
        ignored = ~is_counted(label, ignore_index)
        prediction, label = (t.int().masked_fill(ignored, VOID) for t in (prediction, label))
    return tuple(t.int() if t.dim() == 3 else t.int()[None] for t in (prediction, label))


def contour(labels: Tensor) -> Tensor:
    """Returns a mask of the pixels beside another class, above, below, left or right of them.

    Neither void nor the image's border makes a boundary.

    Args:
        labels: (N, H, W), VOID where there is no class.
    """
    found = torch.zeros_like(labels, dtype=torch.bool)
    for dim in (1, 2):
        size = labels.shape[dim] - 1
        if size < 1:
            continue
        one, other = labels.narrow(dim, 0, size), labels.narrow(dim, 1, size)
        differ = (one != other) & (one != VOID) & (other != VOID)
        found.narrow(dim, 0, size).logical_or_(differ)
        found.narrow(dim, 1, size).logical_or_(differ)
    return found


def contour_points(labels: Tensor, num_classes: int) -> Tensor:
    """Returns int64 (3, K): ``image * num_classes + class``, row and column of contour pixels."""
    image, row, column = contour(labels).nonzero(as_tuple=True)
    return torch.stack([image * num_classes + labels[image, row, column], row, column])


def near(points: Tensor, others: Tensor, distance: float, size: torch.Size) -> Tensor:
    """Returns a mask (K,) of points that have another one of their image and class nearby.

    A disc is a run of pixels in each of its rows. The others are sorted, so that one search tells
    whether any of them lies in a run: the work is that of the contours, not of the image.

    Args:
        points: (3, K) as of :func:`contour_points`.
        others: (3, M), the points of other maps of the same size.
        distance: largest Euclidean distance in pixels that is near.
        size: the maps' size (N, H, W).
    """
    height, width = size[-2:]

    def key(plane: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (plane * height + row) * width + column

    found = torch.zeros(points.shape[1], dtype=torch.bool, device=points.device)
    keys = torch.cat(
        [key(*others).sort().values, points.new_full((1,), torch.iinfo(torch.int64).max)]
    )
    left = torch.arange(points.shape[1], device=points.device)
    square = math.floor(distance**2)
    rows = min(math.isqrt(square), height - 1)
    for row_distance in sorted(range(-rows, rows + 1), key=abs):
        reach = math.isqrt(square - row_distance**2)
        plane, row, column = points[:, left]
        row = row + row_distance
        first = key(plane, row, (column - reach).clamp(min=0))
        last = key(plane, row, (column + reach).clamp(max=width - 1))
        hit = keys[torch.searchsorted(keys, first)] <= last
        hit &= (row >= 0) & (row < height)
        found[left[hit]] = True
        left = left[~hit]
    return found


def squared_distances(mask: Tensor, most: int) -> Tensor:
    """Returns the squared Euclidean distance of each pixel to the nearest of a mask.

    Args:
        mask: bool (N, H, W).
        most: distances beyond it are more than ``most**2``, and otherwise not exact.

    Returns:
        int32 (N, H, W).
    """
    far = 2 * most + 2
    rows = torch.arange(mask.shape[1], dtype=torch.int32, device=mask.device)[:, None]
    above = torch.where(mask, rows, -far).cummax(1).values
    below = torch.where(mask, rows, rows.shape[0] + far).flip(1).cummin(1).values.flip(1)
    squares = torch.minimum(rows - above, below - rows).clamp(max=far).square()
    nearest = squares.clone()
    for d in range(1, min(most, mask.shape[2] - 1) + 1):
        nearest[..., d:] = torch.minimum(nearest[..., d:], squares[..., :-d] + d * d)
        nearest[..., :-d] = torch.minimum(nearest[..., :-d], squares[..., d:] + d * d)
    return nearest


def inner_band(labels: Tensor, distance: int) -> Tensor:
    """Returns a mask of the pixels that an erosion of their class takes away.

    These have another class, or the outside of the image, within a distance by rows and columns.
    Void is like the pixels beside it.

    Args:
        labels: (N, H, W), VOID where there is no class.
        distance: in pixels, at least 1.
    """
    most = window_max(labels, distance)
    # Void is the least, -1; of the negative it becomes the least again.
    least = -window_max(
        torch.where(labels == VOID, torch.iinfo(labels.dtype).min, -labels), distance
    )
    band = most != least
    for dim in (1, 2):
        border = min(distance, labels.shape[dim])
        band.narrow(dim, 0, border).fill_(True)
        band.narrow(dim, labels.shape[dim] - border, border).fill_(True)
    return band & (labels != VOID)


def window_max(labels: Tensor, distance: int) -> Tensor:
    """Returns the maximum over squares of side ``2 * distance + 1``, cut off at the borders.

    A maximum over 2 k elements is one of two over k: a few passes, however large the window.
    """
    size = 2 * distance + 1
    for _ in range(2):
        padded = F.pad(labels, (distance, distance), value=torch.iinfo(labels.dtype).min)
        covered = 1
        while covered < size:
            step = min(covered, size - covered)
            padded = torch.maximum(padded[..., :-step], padded[..., step:])
            covered += step
        labels = padded.mT
    return labels
