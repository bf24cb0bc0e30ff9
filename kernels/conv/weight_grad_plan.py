"""The plan of a weight gradient's launch: which program sums which pixels of which tap.

The pixels at which a tap is live are a rectangle of the output, the same in every image. They are
counted through, image by image and row by row, and a tap's count is cut into pieces, each of which
a program sums for one tile of channels.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastseg._core.conv2d import live_range
from fastseg.kernels.conv.geometry import Branch, Sizes
from fastseg.kernels.conv.makespan import makespan
from fastseg.kernels.conv.plan_cache import pack

COLUMNS = 16
"""Number of integers in a row of the table of pieces."""

STORE_STEPS = 8
"""Time to write a tile's sums in float32, or to read them, in steps of its main loop.

A step of 64 pixels takes 2 * 64 multiply-adds for each sum, of 4 bytes; 800 TFLOP/s (bfloat16) over
3 TB/s makes 8.3 steps. The ratio is about the same for TF32, in steps of 32, and for sm_80.
"""

MOST_ROUNDS = 8
"""Most pieces for each program that runs at a time: more would be too short."""


class Pieces(NamedTuple):
    """The pieces of all taps, on the host.

    Attributes:
        pieces: a row of COLUMNS integers for each piece, the longest first.
        slots: for each tap the first slot of its sums, and at last the number of slots.
    """

    pieces: list[list[int]]
    slots: list[int]


class Plan(NamedTuple):
    """A plan as :mod:`fastseg.kernels.conv.weight_grad` reads it.

    Attributes:
        buffer: all of the plan, int32; the others are its parts.
        pieces: (pieces, COLUMNS).
        slots: (taps + 1,).
    """

    buffer: Tensor
    pieces: Tensor
    slots: Tensor


@functools.lru_cache(maxsize=256)
def live_pixels(sizes: Sizes, branch: Branch) -> tuple[tuple[tuple[slice, slice], ...], ...]:
    """For each tap, row by row of the kernel: by axis what it reads of x, and the outputs."""
    taps = itertools.product(*map(range, branch.kernel_size))
    pairs = zip(*branch[1:], strict=True)
    axes = [(*lengths, *pair) for lengths, pair in zip(sizes.axes, pairs, strict=True)]
    return tuple(
        tuple(live_range(*axis, tap) for axis, tap in zip(axes, numbers, strict=True))
        for numbers in taps
    )


def live_share(sizes: Sizes, branch: Branch) -> float:
    """The share of all pairs (output pixel, tap) that does not fall into padding."""
    taps = live_pixels(sizes, branch)
    return sum(map(_count, taps)) / max(1, len(taps) * sizes.out_pixels)


def make_pieces(sizes: Sizes, branch: Branch, tiles: int, pixels: int, programs: int) -> Pieces:
    """The pieces for `tiles` tiles of channels, `programs` of which run at a time.

    Args:
        sizes: sizes of x and of its convolution's output.
        branch: the convolution.
        tiles: number of tiles of the channels; each takes every piece.
        pixels: number of pixels in a step of the main loop; pieces are whole steps, but for a
            tap's last.
        programs: number of programs that run at a time.
    """
    counts = [sizes.batch * _count(tap) for tap in live_pixels(sizes, branch)]
    steps = [-(-count // pixels) for count in counts]
    cuts = share_out(tuple(steps), tiles, programs)
    slots = list(itertools.accumulate(cuts, initial=0))
    rows = []
    for tap, live in enumerate(live_pixels(sizes, branch)):
        for k in range(cuts[tap]):
            first, last = (steps[tap] * i // cuts[tap] * pixels for i in (k, k + 1))
            piece = (first, min(last, counts[tap]), slots[tap] + k, *_place(sizes, live))
            rows.append([*piece, *[0] * (COLUMNS - len(piece))])
    return Pieces(sorted(rows, key=lambda row: row[0] - row[1]), slots)


def build(sizes: Sizes, branch: Branch, tiles: int, pixels: int, programs: int) -> Plan:
    """A plan on the host; its arguments are those of `make_pieces`."""
    pieces = make_pieces(sizes, branch, tiles, pixels, programs)
    return Plan(*pack([np.array(t, np.int32) for t in pieces]))


def share_out(steps: Sequence[int], tiles: int, programs: int) -> list[int]:
    """The number of pieces that each tap's steps are cut into, so that all is done soonest.

    Programs start in order, the longest first, each as soon as one of those that run at a time
    has ended. Uncut, sums go straight to the output; cut, all of them are written as float32 and
    read once more, by a second kernel, whose launch takes as long as some steps too.
    """
    best, least = None, math.inf
    for pieces in range(1, max(2, max(steps, default=1) + 1)):
        longest = -(-max(steps) // pieces)
        cuts = [max(1, -(-s // max(1, longest))) for s in steps]
        if pieces > 1 and sum(cuts) * tiles > MOST_ROUNDS * programs:
            break
        lengths = [
            s / n + STORE_STEPS for s, n in zip(steps, cuts, strict=True) for _ in range(n * tiles)
        ]
        time = makespan(sorted(lengths, reverse=True), programs)
        if pieces > 1:
            time += STORE_STEPS * (1 + sum(cuts) * tiles / programs)
        if time < least:
            best, least = cuts, time
    return best


def reciprocal(divisor: int) -> tuple[int, int]:
    """Two int32 by which a kernel divides n in [0, 2^31): (umulhi(n, first) + n) >> second.

    Granlund and Montgomery 1994, "Division by invariant integers using multiplication".
    """
    shift = (divisor - 1).bit_length()
    factor = (((1 << shift) - divisor) << 32) // divisor + 1
    return factor - (1 << 32 if factor >= 1 << 31 else 0), shift


def _count(live: Sequence[tuple[slice, slice]]) -> int:
    """The number of pixels of an image in a rectangle."""
    return math.prod(out.stop - out.start for _, out in live)


def _place(sizes: Sizes, live: Sequence[tuple[slice, slice]]) -> tuple[int, ...]:
    """Where a rectangle begins in x and in the output; its width and height, to divide by."""
    (x_rows, rows), (x_columns, columns) = live
    return (
        x_rows.start * sizes.width + x_columns.start,
        rows.start * sizes.out_width + columns.start,
        *_divisor(columns.stop - columns.start),
        *_divisor(rows.stop - rows.start),
    )


def _divisor(n: int) -> tuple[int, int, int]:
    """The integer n, or 1 if it is 0, and its reciprocal."""
    return (max(1, n), *reciprocal(max(1, n)))
