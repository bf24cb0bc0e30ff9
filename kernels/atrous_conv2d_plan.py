"""The plan of a launch: which program takes which tile, taps and channels, in what order.

Tiles (see :mod:`fastseg.kernels.atrous_conv2d_tiles`) run longest first, over all branches of the
launch. Where they are too few to fill the GPU they are split by channels and taps, each part's
sums get a slot of a workspace, and a second kernel adds the slots up in their order: no atomics.

A plan depends on sizes alone. It is built on the host and kept on the device, and outlives every
CUDA graph that was captured with it.
"""

from __future__ import annotations

import heapq
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from fastseg.kernels.atrous_conv2d_tiles import Branch, Sizes, Tiles, make_tiles
from torch import Tensor

MOST_PLANS = 256
"""Kept at a time, most of them of some 10 KB: 4 bytes for each pixel of each branch."""

START, STORE, LAUNCH = 4.0, 4.0, 8.0
"""In steps of 128 x 256 x 64 products, of 0.7 microseconds on an H100 in bfloat16: to begin and to
end a program; to write and to read a tile of 128 x 256 sums; to launch a kernel. Estimates, not
measured."""


class Plan(NamedTuple):
    """A plan on the device; see :mod:`fastseg.kernels.atrous_conv2d_kernel` for how it is read.

    Attributes:
        buffer: all of it, int32; the others are its parts.
        items: (items, 5 + 2 * summed): tile, branch, slot of the workspace (-1: none), first chunk
            of channels, end of chunks; for each summed branch its first tap and their end.
        pixels: (tiles, BM).
        taps: (taps, 4): number in the weight, dy, dx, unused.
        reductions: (split tiles, 4): tile, branch, first slot, number of slots.
        slots: of the workspace.
        mixed: loads need masks.
        share: multiplications executed, of a dense convolution's.
        time: estimated, in steps of 128 x 256 x 64.
    """

    buffer: Tensor
    items: Tensor
    pixels: Tensor
    taps: Tensor
    reductions: Tensor
    slots: int
    mixed: bool
    share: float
    time: float


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


def choose_split(taps: np.ndarray, cut: Cut) -> tuple[list[tuple[int, int]], float]:
    """For each tile its parts by tap and by chunk, and the time that they are estimated to take."""
    longest = int(taps.max()) * cut.chunks
    store = STORE * cut.tile / 128
    best = None
    for divisor in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48):
        most = -(-longest // divisor)
        if divisor > 1 and (most < 2 or len(taps) * cut.columns > 8 * cut.processors):
            break
        parts = {t: parts_of(t, cut.chunks, most) for t in set(taps.tolist())}
        costs = []
        for t in taps.tolist():
            a, b = parts[t]
            steps = -(-t // a) * -(-cut.chunks // b)
            cost = START + steps * cut.step + (store if a * b > 1 else 0)
            costs += [cost] * (a * b * cut.columns)
        costs.sort(reverse=True)
        time = finishing_time(costs, cut.processors)
        time += LAUNCH if any(a * b > 1 for a, b in parts.values()) else 0
        if best is None or time < best[1]:
            best = [parts[t] for t in taps.tolist()], time
    return best


def make_items(tiles: Tiles, parts: Sequence[tuple[int, int]], chunks: int, summed: int):
    """The items, taps and reductions of a plan, as int32 arrays, and the number of slots."""
    first_tap = np.cumsum([0] + [len(taps) for taps in tiles.tap_lists])
    taps = [(number, dy, dx, 0) for of_list in tiles.tap_lists for _, number, dy, dx in of_list]
    items, reductions, slots = [], [], 0
    for tile, (branch, of_list) in enumerate(zip(tiles.branches, tiles.lists, strict=True)):
        walked = tiles.tap_lists[of_list]
        by_tap, by_chunk = parts[tile]
        split = by_tap * by_chunk > 1
        if split:
            reductions.append((tile, branch, slots, by_tap * by_chunk))
        # Where each summed branch begins in the list; a lone branch has all of it.
        starts = np.searchsorted([b for b, *_ in walked], np.arange(1, summed))
        ends = np.concatenate([[0], starts, [len(walked)]])
        for low, high in bounds(len(walked), by_tap):
            ranges = np.clip(np.stack([ends[:-1], ends[1:]], 1), low, high) + first_tap[of_list]
            for chunk_range in bounds(chunks, by_chunk):
                steps = (high - low) * (chunk_range[1] - chunk_range[0])
                slot = slots if split else -1
                items.append((-steps, (tile, branch, slot, *chunk_range, *ranges.ravel())))
                slots += split
    items.sort(key=lambda item: item[0])
    return (
        np.array([item for _, item in items], np.int32),
        np.array(taps, np.int32).reshape(-1, 4),
        np.array(reductions, np.int32).reshape(-1, 4),
        slots,
    )


def build(sizes: Sizes, branches: Sequence[Branch], cut: Cut, summed: bool, flipped: bool) -> Plan:
    """A plan on the host.

    Raises:
        ValueError: more pixels than an int32 counts.
    """
    pixels = sizes.batch * max(sizes.height * sizes.width, sizes.out_height * sizes.out_width)
    if pixels > 2**31 - 1 - cut.tile:
        raise ValueError(f"atrous_conv2d: {pixels} pixels are more than an int32 counts")
    tiles = make_tiles(sizes, branches, cut.tile, summed, flipped)
    parts, time = choose_split(tiles.taps, cut)
    width = len(branches) if summed else 1
    items, taps, reductions, slots = make_items(tiles, parts, cut.chunks, width)
    arrays = (items, tiles.pixels, taps, reductions)
    places, size = [], 0
    for array in arrays:
        places.append(size)
        size += -(-array.size // 4) * 4  # each begins at 16 bytes
    packed = np.zeros(size, np.int32)
    for array, place in zip(arrays, places, strict=True):
        packed[place : place + array.size] = array.ravel()
    kernels = sum(b.kernel_size[0] * b.kernel_size[1] for b in branches)
    dense = sizes.batch * sizes.out_height * sizes.out_width * kernels
    share = tiles.taps.sum().item() * cut.tile / dense
    shapes = [(place, array.shape) for array, place in zip(arrays, places, strict=True)]
    return _view(torch.from_numpy(packed), shapes, slots, tiles.mixed, share, time)


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


plans = PlanCache()
