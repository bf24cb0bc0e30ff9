"""The tiles of pixels that an atrous convolution works on, and the taps that each of them walks.

A tap whose window position lies in padding multiplies zeros. The pixels of all images of a batch
are sorted by their set of live taps (a 3x3 kernel has at most 9 such regions, each a rectangle of
every image) and cut into tiles of BM pixels; a tile walks only the taps that are live for any of
its pixels. Of 33 x 33 maps in a batch of 8 at rates 6, 12 and 18, tiles of 128 execute 80, 60 and
43 % of a dense convolution's multiplications, where 77, 57 and 41 % touch real pixels.

Either every tile keeps to one region, and its loads need no mask; or one list of all pixels is cut,
and tiles across two regions mask what is dead for a pixel: whichever executes less. The last tile
is filled up with its last pixel, so that no lane is idle: it stores the same value twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastseg.kernels.conv.geometry import Branch, Joined, Sizes, live_taps


class Arrangement(NamedTuple):
    """How one group of branches puts the pixels of its output in tiles.

    The pixels of one region read the same live taps. A region is a class of rows and one of
    columns; regions are counted over (classes of rows, classes of columns).

    Attributes:
        row_class: the class of each row of the output.
        column_class: the class of each column.
        columns: number of classes of columns.
        batch: number of images.
        tile: number of pixels of a tile.
        order: the regions in the order of their tiles.
        mixed: whether tiles cross from one region to the next.
    """

    row_class: np.ndarray
    column_class: np.ndarray
    columns: int
    batch: int
    tile: int
    order: list[int]
    mixed: bool

    def pixels(self) -> np.ndarray:
        """Pixels of the output, counted over (N, h, w), (tiles, tile) int32."""
        region_of = (self.row_class[:, None] * self.columns + self.column_class).ravel()
        counts = np.bincount(region_of, minlength=max(self.order) + 1)
        in_image = np.argsort(region_of, kind="stable").astype(np.int32)
        in_image = np.split(in_image, np.cumsum(counts)[:-1])
        images = np.arange(self.batch, dtype=np.int32)[:, None] * np.int32(len(region_of))
        pixels = [(images + in_image[r]).ravel() for r in self.order]
        if self.mixed:
            pixels = [np.concatenate(pixels)]
        tiled = [np.pad(p, (0, -len(p) % self.tile), mode="edge") for p in pixels]
        return np.concatenate(tiled).reshape(-1, self.tile)


class Tiles(NamedTuple):
    """Tiles on the host, longest first.

    Attributes:
        arrangements: where the pixels of each group of branches are.
        order: the number of each tile among those of all arrangements.
        branches: the branch of each tile; 0 where branches are summed.
        lists: the number of the tap list that each tile walks.
        tap_lists: tuples of taps (branch, number in the weight, dy, dx): the pixel (y, x) reads
            (y * stride + dy, x * stride + dx) of the input.
        mixed: whether some tile's taps are not live for all of its pixels.
    """

    arrangements: list[Arrangement]
    order: np.ndarray
    branches: np.ndarray
    lists: np.ndarray
    tap_lists: list[tuple[tuple[int, int, int, int], ...]]
    mixed: bool

    @property
    def taps(self) -> np.ndarray:
        """Number of taps that each tile walks."""
        return np.array([len(taps) for taps in self.tap_lists])[self.lists]

    def pixels(self) -> np.ndarray:
        """Pixels of the output, counted over (N, h, w), (tiles, BM) int32.

        They are made in each call: an estimate of a launch's time does without, and those of large
        maps are many.
        """
        return np.concatenate([a.pixels() for a in self.arrangements])[self.order]


def make_tiles(
    sizes: Sizes,
    branches: Sequence[Branch | Joined],
    tile: int,
    summed: bool = False,
    flipped: bool = False,
) -> Tiles:
    """Tiles of `tile` pixels.

    Args:
        sizes: sizes of the input and of the output.
        branches: convolutions of one stride and output size; joined ones are neither summed with
            others nor flipped.
        tile: BM, the number of pixels of a tile.
        summed: whether branches add up into one output: a tile then walks the taps of all of them.
        flipped: whether a tap's number in the weight counts from the last tap.
    """
    groups = [list(enumerate(branches))] if summed else [[pair] for pair in enumerate(branches)]
    arrangements, walked, of_groups = [], [], []
    for group in groups:
        if isinstance(group[0][1], Joined):
            arrangement, tap_lists, list_of = _joined_tiles(sizes, group[0], tile)
        else:
            arrangement, tap_lists, list_of = _group_tiles(sizes, group, tile, flipped)
        arrangements.append(arrangement)
        of_groups.append(list_of + len(walked))
        walked += tap_lists
    tap_lists = list(dict.fromkeys(walked))
    number = {taps: i for i, taps in enumerate(tap_lists)}
    lists = np.array([number[taps] for taps in walked])[np.concatenate(of_groups)]
    branch = np.repeat(np.arange(len(groups)), [len(of_group) for of_group in of_groups])
    order = np.argsort(np.array([-len(taps) for taps in tap_lists])[lists], kind="stable")
    mixed = any(a.mixed for a in arrangements)
    return Tiles(arrangements, order, branch[order], lists[order], tap_lists, mixed)


def _joined_tiles(sizes, numbered, tile):
    """What `_group_tiles` returns, of a `Joined` with its number: its taps are counted through."""
    number, joined = numbered
    arrangement, lists, list_of = _group_tiles(sizes, list(enumerate(joined.branches)), tile, False)
    first = np.cumsum([0] + [branch.taps for branch in joined.branches]).tolist()
    renamed = [
        tuple((number, first[b] + tap, dy, dx) for b, tap, dy, dx in walked) for walked in lists
    ]
    return arrangement, renamed, list_of


def _group_tiles(sizes, group, tile, flipped):
    """The arrangement of branches that share tiles, tap lists, and the number of each tile's."""
    (rows, row_class), (columns, column_class) = (
        _axis_classes(*sizes.axes[axis], group, axis) for axis in (0, 1)
    )
    regions = [
        frozenset(
            (b, i, j)
            for n, (b, _) in enumerate(group)
            for i in range(*rows[2 * n : 2 * n + 2, r])
            for j in range(*columns[2 * n : 2 * n + 2, c])
        )
        for r in range(rows.shape[1])
        for c in range(columns.shape[1])
    ]
    counts = np.outer(np.bincount(row_class), np.bincount(column_class)).ravel() * sizes.batch
    order, mixed = _cheapest_order(regions, counts, tile)
    in_order = [regions[r] for r in order]
    if mixed:
        live, list_of = _unions(in_order, counts[order], tile)
    else:
        live, list_of = in_order, np.repeat(np.arange(len(order)), -(-counts[order] // tile))
    tap_lists = [_tap_list(taps, dict(group), flipped) for taps in live]
    arrangement = Arrangement(
        row_class, column_class, columns.shape[1], sizes.batch, tile, order, mixed
    )
    return arrangement, tap_lists, list_of


def _axis_classes(size, out, group, axis):
    """Along one axis, the distinct live taps (2 * branches, classes), and the class of each out."""
    live = [live_taps(size, out, *(pair[axis] for pair in b)) for _, b in group]
    classes, class_of = np.unique(np.concatenate(live), axis=1, return_inverse=True)
    return classes, class_of.reshape(-1)


def _tap_list(live, branches, flipped):
    """A tuple of `Tiles.tap_lists` for live taps (branch, row, column)."""
    taps = []
    for b, i, j in sorted(live):
        kernel, _, padding, dilation = branches[b]
        number = i * kernel[1] + j
        number = kernel[0] * kernel[1] - 1 - number if flipped else number
        taps.append((b, number, i * dilation[0] - padding[0], j * dilation[1] - padding[1]))
    return tuple(taps)


def _unions(regions, counts, tile):
    """The live taps of the tiles of one list of pixels, and the number of each tile's.

    Args:
        regions: the live taps of the list's regions, in its order.
        counts: the numbers of their pixels.
        tile: number of pixels of a tile.
    """
    ends = np.cumsum(counts)
    starts = np.arange(0, ends[-1], tile)
    first = np.searchsorted(ends, starts, "right")
    last = np.searchsorted(ends, np.minimum(starts + tile, ends[-1]) - 1, "right")
    spans, of_tiles = np.unique(first * len(regions) + last, return_inverse=True)
    spans = [divmod(span, len(regions)) for span in spans.tolist()]
    return [frozenset().union(*regions[a : b + 1]) for a, b in spans], of_tiles.reshape(-1)


def _cheapest_order(regions, counts, tile):
    """The order of the regions, and whether tiles cross from one to the next."""
    most_first = sorted(range(len(regions)), key=lambda r: (-len(regions[r]), sorted(regions[r])))
    chain, rest = most_first[:1], most_first[1:]
    while rest:  # to the region that adds the fewest taps, then to the one most alike
        last = regions[chain[-1]]
        nearest = min(rest, key=lambda r: (len(last | regions[r]), len(last ^ regions[r])))
        chain.append(nearest)
        rest.remove(nearest)

    def cost(order):
        live, of_tiles = _unions([regions[r] for r in order], counts[order], tile)
        return int(np.array([len(taps) for taps in live])[of_tiles].sum())

    one_region_each = sum(-(-int(c) // tile) * len(r) for r, c in zip(regions, counts, strict=True))
    order = min((most_first, chain), key=cost)
    mixed = cost(order) < one_region_each
    return order, mixed
