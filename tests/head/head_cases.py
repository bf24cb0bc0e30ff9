"""Small logits of all shapes and strides, and the sizes that they are brought to."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """Logits (N, C, h, w) that are brought to (H, W)."""

    shape: tuple[int, int, int, int]
    size: tuple[int, int]

    def __str__(self) -> str:
        return f"{'x'.join(map(str, self.shape))}-{'x'.join(map(str, self.size))}"


CASES = [
    Case((2, 21, 9, 9), (65, 65)),
    Case((1, 5, 33, 65), (260, 513)),  # many blocks of cells, a row of them exactly on a source row
    Case((1, 3, 7, 5), (3, 9)),  # down and up
    Case((2, 300, 4, 6), (9, 11)),  # ids of more than a byte
    Case((1, 1, 2, 2), (5, 5)),  # one class
    Case((1, 4, 1, 1), (33, 70)),  # the image pooling's logits
    Case((1, 4, 2, 2), (40, 300)),  # cells of a column fill more than one
    Case((1, 7, 50, 60), (5, 7)),  # columns far apart
    Case((1, 7, 20, 60), (20, 60)),  # nothing to interpolate
    Case((1, 6, 20, 31), (40, 31)),  # one axis
    Case((1, 6, 20, 31), (23, 33)),  # hardly larger
    Case((1, 150, 8, 8), (32, 32)),
    Case((1, 3, 6, 40), (13, 440)),  # cells of 11 pixels
    Case((0, 3, 4, 4), (8, 8)),
]

STRIDES = ("contiguous", "channels_last", "sliced", "transposed", "expanded")


def logits_of(case: Case, dtype: torch.dtype, strides: str = "contiguous") -> Tensor:
    """Random logits that lie in memory as the name says."""
    n, c, h, w = case.shape
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    if strides == "channels_last":
        return random(*case.shape).contiguous(memory_format=torch.channels_last)
    if strides == "sliced":
        return random(n, c + 2, h + 3, 2 * w)[:, 1:-1, 2:-1, ::2]
    if strides == "transposed":
        return random(n, c, w, h).transpose(2, 3)
    if strides == "expanded":
        return random(n, c, 1, w).expand(case.shape)
    return random(*case.shape)
