"""Who sums what in the gradient of an atrous convolution's weight: taps, cut into pieces.

The pixels at which a tap is live are a rectangle of the output, the same in every image. They are
counted through, image by image and row by row, and a tap's count is cut into pieces, each of which
a program sums for one tile of channels.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg._core.conv2d import live_range

COLUMNS = 16
"""Integers in a row of the table of pieces."""

STORE_STEPS = 8
"""What writing a tile's sums in float32 takes, or reading them, in steps of its main loop.

A step of 64 pixels takes 2 * 64 multiply-adds for each sum, of 4 bytes; 800 TFLOP/s (bfloat16) over
3 TB/s makes 8.3 steps. The ratio is about the same for TF32, in steps of 32, and for sm_80.
"""

MOST_ROUNDS = 8
"""Pieces beyond this many for each program that runs at a time would be too short."""


class Geometry(NamedTuple):
    """Of a convolution; each pair is (vertical, horizontal)."""

    images: int
    size: tuple[int, int]
    out_size: tuple[int, int]
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]


class Plan(NamedTuple):
    """The pieces of all taps.

    Attributes:
        pieces: of each a row of COLUMNS integers, the longest first.
        slots: where each tap's pieces begin among the slots of their sums; and how many there are.
    """

    pieces: list[list[int]]
    slots: list[int]


@functools.lru_cache(maxsize=256)
def live_pixels(geometry: Geometry) -> tuple[tuple[tuple[slice, slice], ...], ...]:
    """For each tap, row by row of the kernel: by axis what it reads of x, and the outputs."""
    taps = itertools.product(*map(range, geometry.kernel_size))
    axes = list(zip(*geometry[1:3], *geometry[4:], strict=True))
    return tuple(
        tuple(live_range(*axis, tap) for axis, tap in zip(axes, numbers, strict=True))
        for numbers in taps
    )


def live_share(geometry: Geometry) -> float:
    """Which share of all pairs (output pixel, tap) does not fall into padding."""
    taps = live_pixels(geometry)
    return sum(map(_count, taps)) / max(1, len(taps) * math.prod(geometry.out_size))


@functools.lru_cache(maxsize=256)
def make_plan(geometry: Geometry, tiles: int, pixels: int, programs: int) -> Plan:
    """The pieces for `tiles` tiles of channels, `programs` of which run at a time.

    Args:
        geometry: of the convolution.
        tiles: of the channels; each takes every piece.
        pixels: in a step of the main loop; pieces are whole steps, but for a tap's last.
        programs: that run at a time.
    """
    counts = [geometry.images * _count(tap) for tap in live_pixels(geometry)]
    steps = [-(-count // pixels) for count in counts]
    cuts = share_out(tuple(steps), tiles, programs)
    slots = list(itertools.accumulate(cuts, initial=0))
    rows = []
    for tap, live in enumerate(live_pixels(geometry)):
        for k in range(cuts[tap]):
            first, last = (steps[tap] * i // cuts[tap] * pixels for i in (k, k + 1))
            piece = (first, min(last, counts[tap]), slots[tap] + k, *_place(geometry, live))
            rows.append([*piece, *[0] * (COLUMNS - len(piece))])
    return Plan(sorted(rows, key=lambda row: row[0] - row[1]), slots)


@functools.lru_cache(maxsize=256)
def plan_tensors(
    geometry: Geometry, tiles: int, pixels: int, programs: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """make_plan's pieces (pieces, COLUMNS) and slots (taps + 1,), int32, on a device."""
    plan = make_plan(geometry, tiles, pixels, programs)
    return tuple(torch.tensor(t, dtype=torch.int32, device=device) for t in plan)


def share_out(steps: Sequence[int], tiles: int, programs: int) -> list[int]:
    """How many pieces each tap's steps are cut into, so that all is done soonest.

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
        lengths = [s / n + STORE_STEPS for s, n in zip(steps, cuts, strict=True) for _ in range(n)]
        time = _makespan(sorted(lengths, reverse=True), tiles, programs)
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
    """Of pixels in an image."""
    return math.prod(out.stop - out.start for _, out in live)


def _place(geometry: Geometry, live: Sequence[tuple[slice, slice]]) -> tuple[int, ...]:
    """Where the rectangle begins in x and in the output; its width and height, to divide by."""
    (x_rows, rows), (x_columns, columns) = live
    return (
        x_rows.start * geometry.size[1] + x_columns.start,
        rows.start * geometry.out_size[1] + columns.start,
        *_divisor(columns.stop - columns.start),
        *_divisor(rows.stop - rows.start),
    )


def _divisor(n: int) -> tuple[int, int, int]:
    """n, at least 1, and its reciprocal."""
    return (max(1, n), *reciprocal(max(1, n)))


def _makespan(lengths: Sequence[float], tiles: int, programs: int) -> float:
    """When the last of `tiles` programs of each length ends, started in order."""
    busy = [0.0] * programs
    for length in lengths:
        for _ in range(tiles):
            heapq.heapreplace(busy, busy[0] + length)
    return max(busy)
