"""The plan of a launch: which program takes which tile, taps and channels, in what order.

Tiles (see :mod:`fastseg.kernels.conv.tiles`) run longest first, over all branches of the
launch. Where they are too few to fill the GPU they are split by channels and taps, each part's
sums get a slot of a workspace, and a second kernel adds the slots up in their order: no atomics.

A plan depends on sizes alone. It is built on the host and kept on the device, and outlives every
CUDA graph that was captured with it.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastseg.kernels.conv.tiles import Branch, Sizes, Tiles, make_tiles

MOST_PLANS = 256
"""Kept at a time, most of them of some 10 KB: 4 bytes for each pixel of each branch."""

START, STORE, LAUNCH = 4.0, 4.0, 8.0
"""In steps of 128 x 256 x 64 products, of 0.7 microseconds on an H100 in bfloat16: to begin and to
end a program; to write and to read a tile of 128 x 256 sums; to launch a kernel. Estimates, not
measured."""

DIVISORS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""The longest tile's taps and channels may be split into so many parts."""


class Plan(NamedTuple):
    """A plan on the device; see :mod:`fastseg.kernels.conv.forward` for how it is read.

    Attributes:
        buffer: all of it, int32; the others are its parts.
        items: (items, 5 + 2 * summed): tile, branch, slot of the workspace (-1: none), first chunk
            of channels, end of chunks; for each summed branch its first tap and their end.
        pixels: (tiles, BM).
        taps: (taps, 4): number in the weight, dy, dx, unused.
        reductions: (split tiles, 4): tile, branch, first slot, number of slots.
        slots: of the workspace.
        mixed: loads need masks.
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
        tile: BM, pixels.
        columns: how many programs share a tile's output channels.
        chunks: the main loop's steps for one tap.
        step: how long one takes, in steps of 128 x 256 x 64.
        processors: of the GPU.
    """

    tile: int
    columns: int
    chunks: int
    step: float
    processors: int


def parts_of(taps: int, chunks: int, most: int) -> tuple[int, int]:
    """Into how many parts to split taps and chunks so that none has more than `most` steps."""
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
    """`total` cut into `parts` ranges as even as can be."""
    return [(i * total // parts, (i + 1) * total // parts) for i in range(parts)]


def finishing_time(costs: Sequence[float], processors: int) -> float:
    """When the last of the programs ends, if each processor takes the next as it becomes free."""
    if len(costs) > 16 * processors:
        return sum(costs) / processors + max(costs) / 2
    busy = [0.0] * processors
    for cost in costs:
        heapq.heapreplace(busy, busy[0] + cost)
    return max(busy)


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
        time = finishing_time(sorted(costs, reverse=True), cut.processors)
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
    """`make_tiles`, of which block shapes of the same BM share the result.

    Raises:
        ValueError: more pixels than an int32 counts.
    """
    rows = sizes.batch * sizes.height + sizes.out_height * branches[0].stride[0]
    inputs = rows * sizes.width + sizes.out_width * branches[0].stride[1]  # windows may overhang
    outputs = sizes.batch * sizes.out_height * sizes.out_width
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

    The time is in steps of 128 x 256 x 64.
    """
    tiles = tiles_of(sizes, branches, cut.tile, summed, flipped)
    kernels = sum(b.kernel_size[0] * b.kernel_size[1] for b in branches)
    dense = sizes.batch * sizes.out_height * sizes.out_width * kernels
    return choose_split(tiles.taps, cut)[1], tiles.taps.sum().item() * cut.tile / dense


def build(
    sizes: Sizes, branches: tuple[Branch, ...], cut: Cut, summed: bool, flipped: bool
) -> Plan:
    """A plan on the host."""
    tiles = tiles_of(sizes, branches, cut.tile, summed, flipped)
    parts, _ = choose_split(tiles.taps, cut)
    width = len(branches) if summed else 1
    items, taps, reductions, slots = make_items(tiles, parts, cut.chunks, width)
    arrays = (items, tiles.pixels, taps, reductions)
    places = np.cumsum([0] + [-(-array.size // 4) * 4 for array in arrays]).tolist()
    packed = np.zeros(places[-1], np.int32)  # each part begins at 16 bytes
    shapes = []
    for array, place in zip(arrays, places[:-1], strict=True):
        packed[place : place + array.size] = array.ravel()
        shapes.append((place, array.shape))
    return _view(torch.from_numpy(packed), shapes, slots, tiles.mixed)


def _view(buffer, shapes, *others):
    views = [buffer[place : place + shape[0] * shape[1]].view(shape) for place, shape in shapes]
    return Plan(buffer, *views, *others)


def to_device(plan: Plan, buffer: Tensor) -> Plan:
    """The plan with its parts in `buffer`, a copy of its own."""
    parts = plan[1:5]
    shapes = [(part.storage_offset(), part.shape) for part in parts]
    return _view(buffer, shapes, *plan[5:])


class PlanCache:
    """The plans that were used last. Of one process; threads share it."""

    def __init__(self, most: int = MOST_PLANS):
        self.most = most
        self.lock = threading.Lock()
        self.plans: OrderedDict = OrderedDict()
        self.captured: list = []

    def renew_lock(self) -> None:
        """Makes a lock that nobody holds."""
        self.lock = threading.Lock()

    def get(
        self,
        sizes: Sizes,
        branches: tuple[Branch, ...],
        cut: Cut,
        device: torch.device,
        summed: bool = False,
        flipped: bool = False,
    ) -> Plan:
        """The plan, on the device and ready for the current stream."""
        key = (sizes, branches, cut, device, summed, flipped)
        on_gpu = device.type == "cuda"
        capturing = on_gpu and torch.cuda.is_current_stream_capturing()
        with self.lock:
            plan = self.plans.get(key)
            if plan is None:
                plan = build(*key[:3], summed, flipped)
                if capturing:
                    # The copy becomes a part of the graph, which reads the host's memory whenever
                    # it runs, and owns the device's: this plan is of no use outside of it.
                    pinned = plan.buffer.pin_memory()
                    plan = to_device(plan, pinned.to(device, non_blocking=True))
                    self.captured.append(pinned)
                    return plan
                # Waits for the copy: other streams may use the plan right away.
                plan = to_device(plan, plan.buffer.to(device))
                self.plans[key] = plan
                if len(self.plans) > self.most:
                    self.plans.popitem(last=False)
            self.plans.move_to_end(key)
            if capturing and not any(kept is plan for kept in self.captured):
                self.captured.append(plan)  # the graph reads it without owning it
        if on_gpu and not capturing:
            # A plan that is dropped may still be read by a stream that it was not made on.
            plan.buffer.record_stream(torch.cuda.current_stream(device))
        return plan


cache = PlanCache()
# Another thread may hold it while the process forks, and is not there in the child.
os.register_at_fork(after_in_child=cache.renew_lock)
