"""The plan of a forward launch: which program takes which tile, taps and channels, in what order.

Tiles (see :mod:`fastseg.kernels.conv.tiles`) run longest first, over all branches of the
launch. Where they leave the GPU idle some are cut by channels and taps (see
:mod:`fastseg.kernels.conv.cuts`), each part's sums get a slot of a workspace, and a second kernel
adds the slots up in their order: no atomics.

A plan depends on sizes alone, and is kept in :mod:`fastseg.kernels.conv.plan_cache`.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fastseg.kernels.conv.cuts import Cut, Cuts, choose_cuts, least_time
from fastseg.kernels.conv.geometry import Branch, Sizes
from fastseg.kernels.conv.plan_cache import pack
from fastseg.kernels.conv.tiles import Tiles, make_tiles


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


def make_items(tiles: Tiles, cuts: Cuts, chunks: int, summed: int):
    """The items, taps and reductions of a plan, as int32 arrays, and the number of slots."""
    first_tap = np.cumsum([0] + [len(taps) for taps in tiles.tap_lists])
    taps = [(number, dy, dx, 0) for of_list in tiles.tap_lists for _, number, dy, dx in of_list]
    slots = np.zeros(len(tiles.lists), np.int64)
    slots[list(cuts)] = [len(parts) for parts in cuts.values()]
    first_slot = np.cumsum(slots) - slots
    # Of each item the tile, the slot, the first tap of its list and the end, and of the chunks.
    whole = np.flatnonzero(slots == 0)
    rows = np.zeros((len(whole), 6), np.int64)
    rows[:, 0], rows[:, 1], rows[:, 3], rows[:, 5] = whole, -1, tiles.taps[whole], chunks
    parts = [
        (tile, first_slot[tile] + i, *part)
        for tile, of_tile in cuts.items()
        for i, part in enumerate(of_tile)
    ]
    rows = np.concatenate([rows, np.array(parts, np.int64).reshape(-1, 6)])
    steps = (rows[:, 3] - rows[:, 2]) * (rows[:, 5] - rows[:, 4])
    tile, slot, low, high, *chunk_range = rows[np.argsort(-steps, kind="stable")].T
    lists = tiles.lists[tile]
    # Where each summed branch's taps begin in a list; a lone branch has all of them.
    starts = [
        [0, *np.searchsorted([b for b, *_ in walked], range(1, summed)), len(walked)]
        for walked in tiles.tap_lists
    ]
    starts = np.array(starts, np.int64)[lists]
    ranges = np.stack([starts[:, :-1], starts[:, 1:]], 2).reshape(len(tile), -1)
    ranges = np.clip(ranges, low[:, None], high[:, None]) + first_tap[lists][:, None]
    items = np.concatenate(
        [np.stack([tile, tiles.branches[tile], slot, *chunk_range], 1), ranges], 1
    )
    of_slots = np.flatnonzero(slots)
    reductions = (of_slots, tiles.branches[of_slots], first_slot[of_slots], slots[of_slots])
    return (
        items.astype(np.int32),
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


@functools.lru_cache(maxsize=64)
def cuts_of(
    sizes: Sizes, branches: tuple[Branch, ...], cut: Cut, summed: bool, flipped: bool
) -> tuple[Cuts, float]:
    """The result of `choose_cuts`, which a plan takes after its estimate."""
    return choose_cuts(tiles_of(sizes, branches, cut.tile, summed, flipped).taps, cut)


def estimate(
    sizes: Sizes,
    branches: tuple[Branch, ...],
    cut: Cut,
    summed: bool,
    flipped: bool,
    most: float = math.inf,
) -> float:
    """The microseconds that a launch should take.

    Args:
        sizes: sizes of the input and of the output.
        branches: the convolutions of the launch.
        cut: how tiles are cut into products.
        summed: whether the branches add up into one output.
        flipped: whether taps are counted from the last one of the weight.
        most: a time; if the launch is seen to take longer the result is infinity.
    """
    taps = tiles_of(sizes, branches, cut.tile, summed, flipped).taps
    if least_time(taps, cut) > most:
        return math.inf
    return cuts_of(sizes, branches, cut, summed, flipped)[1]


def build(
    sizes: Sizes, branches: tuple[Branch, ...], cut: Cut, summed: bool, flipped: bool
) -> Plan:
    """A plan on the host; its arguments are those of `estimate`."""
    tiles = tiles_of(sizes, branches, cut.tile, summed, flipped)
    cuts, _ = cuts_of(sizes, branches, cut, summed, flipped)
    width = len(branches) if summed else 1
    items, taps, reductions, slots = make_items(tiles, cuts, cut.chunks, width)
    arrays = (items, tiles.pixels(), taps, reductions)
    return Plan(*pack(arrays), slots, tiles.mixed)
