"""What the reference and the op of pixel-adaptive refinement share: neighbours and checks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.tensor_checks import check_device, check_float

VARIANTS = ("par", "pamr")
"""Published forms of the affinity."""

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""(row, column) of a pixel's eight neighbours."""


def neighbor_shifts(dilations: Sequence[int]) -> list[tuple[int, int]]:
    """Returns (rows, columns) from a pixel to each of its neighbours, dilation after dilation."""
    return [(d * row, d * column) for d in dilations for row, column in DIRECTIONS]


def check_refinement(
    op: str,
    image: Tensor,
    planes_name: str,
    planes: Tensor,
    dilations: Sequence[int],
    iterations: int,
    variant: str,
) -> None:
    """Raises RuntimeError unless the arguments of an op of this family fit each other.

    Args:
        op: the op's name, with which an error begins.
        image: (N, K, H, W).
        planes_name: the name of the second tensor.
        planes: (N, C, H, W).
        dilations: distances of the neighbours.
        iterations: number of iterations.
        variant: one of VARIANTS.
    """
    for name, t in (("image", image), (planes_name, planes)):
        check_float(op, name, t)
        torch._check(
            t.dim() == 4,
            lambda name=name, t=t: f"{op}: {name} must be (N, C, H, W), got {tuple(t.shape)}",
        )
    check_device(op, "image", image, planes_name, planes)
    torch._check(
        image.shape[1] > 0,
        lambda: f"{op}: image must have at least one channel, got {tuple(image.shape)}",
    )
    torch._check(
        image.shape[0] == planes.shape[0] and image.shape[2:] == planes.shape[2:],
        lambda: (
            f"{op}: image must have {planes_name}'s N, H and W, got {tuple(image.shape)} for "
            f"{planes_name} {tuple(planes.shape)}"
        ),
    )
    torch._check(
        len(dilations) > 0 and all(d > 0 for d in dilations),
        lambda: f"{op}: dilations must be positive, at least one, got {list(dilations)}",
    )
    torch._check(
        iterations >= 0, lambda: f"{op}: iterations must not be negative, got {iterations}"
    )
    torch._check(
        variant in VARIANTS,
        lambda: f"{op}: variant must be one of {', '.join(VARIANTS)}, got {variant!r}",
    )
