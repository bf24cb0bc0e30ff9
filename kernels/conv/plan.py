"""The plan of a forward launch: which program takes which tile, taps and channels, in what order.

Tiles (see :mod:`fastseg.kernels.conv.tiles`) run longest first, over all branches of the
launch. Where they are too few to fill the GPU they are split by channels and taps, each part's
sums get a slot of a workspace, and a second kernel adds the slots up in their order: no atomics.

A plan depends on sizes alone, and is kept in :mod:`fastseg.kernels.conv.plan_cache`.
"""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastseg.kernels.conv.geometry import Branch, Sizes
from fastseg.kernels.conv.makespan import makespan
from fastseg.kernels.conv.plan_cache import pack
from fastseg.kernels.conv.tiles import Tiles, make_tiles

START, STORE, LAUNCH = 4.0, 4.0, 8.0
"""Times to begin and to end a program; to write and to read a tile of 128 x 256 sums; to launch a
kernel. Their unit is a step of 128 x 256 x 64 products, 0.7 microseconds on an H100 in bfloat16.
They are estimates, not measured."""

DIVISORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Numbers of parts that the longest tile's taps and channels may be split into."""


class Plan(NamedTuple):
    """A plan as :mod:`fastseg.kernels.conv.forward` reads it.

    Attributes:
        buffer: all of the plan, int32; the other tensors are its parts.
        items: (items, 5 + 2 * summed): tile, branch, slot of the workspace (-1: none), first chunk
            of channels, end of chunks; for each summed branch its first tap and their end.
        pixels: (tiles, BM): pixels of the output, counted over (N, h, w).
        taps: (taps, 4): number in the weight, dy, dx, unused.
        reductions: (split tiles, 4): tile, branch, first slot, number of slots.
        slots: number of slots of the workspace.
        mixed: whether loads need masks.
    """

    buffer: Tensor
    items: Tensor
    pixels: Tensor
    taps: Tensor
    reductions: Tensor
    slots: int
    mixed: bool


class Cut(NamedTuple):
    """How a launch's tiles are cut into products.

    Attributes:
        tile: BM, the number of pixels of a tile.
        columns: number of programs that share a tile's output channels.
        chunks: number of the main loop's steps for one tap.
        step: the time of one step, in steps of 128 x 256 x 64.
        processors: number of the GPU's multiprocessors.
    """

    tile: int
    columns: int
    chunks: int
    step: float
    processors: int


def parts_of(taps: int, chunks: int, most: int) -> tuple[int, int]:
    """The numbers of parts of taps and of chunks for which no part has more than `most` steps."""
    if taps == 0:
        return 1, 1
    options = []
    for by_tap in range(1, taps + 1):
        rows = -(-taps // by_tap)
        by_chunk = -(-chunks // max(1, most // rows))
        if rows * -(-chunks // by_chunk) <= most:
            options.append((by_tap * by_chunk, by_tap, by_chunk))
    return min(options)[1:] if options else (taps, chunks)


def bounds(total: int, parts: int) -> list[tuple[int, int]]:
    """The `parts` ranges, as even as can be, that `total` is cut into."""
    return [(i * total // parts, (i + 1) * total // parts) for i in range(parts)]


def choose_split(taps: np.ndarray, cut: Cut) -> tuple[dict[int, tuple[int, int]], float]:
    """For tiles of so many taps their parts by tap and by chunk, and the time they should take."""
    counts = dict(zip(*(a.tolist() for a in np.unique(taps, return_counts=True)), strict=True))
    longest = max(counts) * cut.chunks
    store = STORE * cut.tile / 128
    divisors = DIVISORS if len(taps) * cut.columns <= 8 * cut.processors else (1,)
    best = None
    for most in sorted({-(-longest // divisor) for divisor in divisors}, reverse=True):
        parts = {t: parts_of(t, cut.chunks, most) for t in counts}
        costs = []
        for t, (a, b) in sorted(parts.items(), reverse=True):
            steps = -(-t // a) * -(-cut.chunks // b)
            cost = START + steps * cut.step + (store if a * b > 1 else 0)
            costs += [cost] * (counts[t] * a * b * cut.columns)
        time = makespan(sorted(costs, reverse=True), cut.processors)
        time += LAUNCH if any(a * b > 1 for a, b in parts.values()) else 0
        if best is None or time < best[1]:
            best = parts, time
    return best


def make_items(tiles: Tiles, parts: dict[int, tuple[int, int]], chunks: int, summed: int):
    """The items, taps and reductions of a plan, as int32 arrays, and the number of slots."""
    first_tap = np.cumsum([0] + [len(taps) for taps in tiles.tap_lists])
    taps = [(number, dy, dx, 0) for of_list in tiles.tap_lists for _, number, dy, dx in of_list]
    split = np.array([parts[len(walked)][0] * parts[len(walked)][1] for walked in tiles.tap_lists])
    slots = np.where(split > 1, split, 0)[tiles.lists]
    first_slot = np.cumsum(slots) - slots
    items, steps = [], []
    for i, walked in enumerate(tiles.tap_lists):
        of_list = np.flatnonzero(tiles.lists == i)
        by_tap, by_chunk = parts[len(walked)]
        # Where each summed branch begins among the taps; a lone branch has all of them.
        starts = np.searchsorted([b for b, *_ in walked], np.arange(1, summed))
        ends = np.concatenate([[0], starts, [len(walked)]])
        pieces = itertools.product(bounds(len(walked), by_tap), bounds(chunks, by_chunk))
        for piece, ((low, high), chunk_range) in enumerate(pieces):
            rows = np.empty((len(of_list), 5 + 2 * summed), np.int32)
            rows[:, 0], rows[:, 1] = of_list, tiles.branches[of_list]
            rows[:, 2] = first_slot[of_list] + piece if split[i] > 1 else -1
            rows[:, 3:5] = chunk_range
            ranges = np.clip(np.stack([ends[:-1], ends[1:]], 1), low, high) + first_tap[i]
            rows[:, 5:] = ranges.ravel()
            items.append(rows)
            steps.append(np.full(len(rows), (high - low) * (chunk_range[1] - chunk_range[0])))
    order = np.argsort(-np.concatenate(steps), kind="stable")
    of_slots = np.flatnonzero(slots)
    reductions = (of_slots, tiles.branches[of_slots], first_slot[of_slots], slots[of_slots])
    return (
        np.concatenate(items)[order],
        np.array(taps, np.int32).reshape(-1, 4),
        np.stack(reductions, 1).astype(np.int32),
        int(slots.sum()),
    )


@functools.lru_cache(maxsize=64)
def tiles_of(
    sizes: Sizes, branches: tuple[Branch, ...], tile: int, summed: bool, flipped: bool
) -> Tiles:
    """The result of `make_tiles`, which block shapes of the same BM share.

    Raises:
        ValueError: the maps have more pixels than an int32 counts.
    """
    rows = sizes.batch * sizes.height + sizes.out_height * branches[0].stride[0]
    inputs = rows * sizes.width + sizes.out_width * branches[0].stride[1]  # windows may overhang
    outputs = sizes.batch * sizes.out_pixels
    if max(inputs, outputs) > 2**31 - 1 - tile:
        raise ValueError(
            f"atrous_conv2d: {sizes.batch} maps of {sizes.height} x {sizes.width} have more pixels"
            " than an int32 counts"
        )
    return make_tiles(sizes, branches, tile, summed, flipped)


def estimate(
    sizes: Sizes, branches: tuple[Branch, ...], cut: Cut, summed: bool, flipped: bool
) -> tuple[float, float]:
    """The time that a launch should take and its share of a dense convolution's multiplications.

    Args:
        sizes: sizes of the input and of the output.
        branches: the convolutions of the launch.
        cut: how tiles are cut into products.
        summed: whether the branches add up into one output.
        flipped: whether taps are counted from the last one of the weight.

    Returns:
        The time in steps of 128 x 256 x 64, and the share.
    """
    tiles = tiles_of(sizes, branches, cut.tile, summed, flipped)
    dense = sizes.batch * sizes.out_pixels * sum(b.taps for b in branches)
    return choose_split(tiles.taps, cut)[1], tiles.taps.sum().item() * cut.tile / dense


def build(
    sizes: Sizes, branches: tuple[Branch, ...], cut: Cut, summed: bool, flipped: bool
) -> Plan:
    """A plan on the host; its arguments are those of `estimate`."""
    tiles = tiles_of(sizes, branches, cut.tile, summed, flipped)
    parts, _ = choose_split(tiles.taps, cut)
    width = len(branches) if summed else 1
    items, taps, reductions, slots = make_items(tiles, parts, cut.chunks, width)
    arrays = (items, tiles.pixels, taps, reductions)
    return Plan(*pack(arrays), slots, tiles.mixed)
