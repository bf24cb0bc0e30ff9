"""The geometry of a launch's convolutions: sizes of the maps, branches, live taps along an axis."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastseg._core.conv2d import Conv2d

Pair = tuple[int, int]
"""Two integers, (vertical, horizontal)."""


class Branch(NamedTuple):
    """One convolution of a launch; each pair is (vertical, horizontal)."""

    kernel_size: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def taps(self) -> int:
        """Number of taps of the kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    def sizes(self, x: Tensor) -> Sizes:
        """Sizes of x (N, C, H, W) and of the output of its convolution."""
        out = Conv2d(*self[1:], groups=1).output_size(x.shape[2:], self.kernel_size)
        return Sizes(x.shape[0], *x.shape[2:], *out)


class Joined(NamedTuple):
    """Convolutions of one stride that add up, as one whose weight is all of theirs, tap by tap.

    Attributes:
        branches: the convolutions, in the order of their taps in the weight.
    """

    branches: tuple[Branch, ...]

    @property
    def taps(self) -> int:
        """Number of taps of all of them."""
        return sum(branch.taps for branch in self.branches)

    @property
    def stride(self) -> Pair:
        """The stride."""
        return self.branches[0].stride

    def sizes(self, x: Tensor) -> Sizes:
        """Sizes of x (N, C, H, W) and of the output."""
        return self.branches[0].sizes(x)


class Sizes(NamedTuple):
    """Sizes of the input and of the output, which all branches of a launch share."""

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int

    @property
    def out_pixels(self) -> int:
        """Number of pixels of one image of the output."""
        return self.out_height * self.out_width

    @property
    def axes(self) -> tuple[Pair, Pair]:
        """(size of the input, size of the output) along each axis."""
        return (self.height, self.out_height), (self.width, self.out_width)


def live_taps(size: int, out: int, k: int, s: int, p: int, d: int) -> np.ndarray:
    """Along one axis, the first live tap of each output and the end of its live taps, (2, out).

    Args:
        size: size of the input.
        out: size of the output.
        k: number of taps.
        s: stride.
        p: padding.
        d: dilation.
    """
    origin = np.arange(out, dtype=np.int64) * s - p
    first = np.clip(-(origin // d), 0, k)
    end = np.clip((size - 1 - origin) // d + 1, 0, k)
    return np.stack([first, np.maximum(first, end)])
