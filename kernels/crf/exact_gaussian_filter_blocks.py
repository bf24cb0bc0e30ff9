"""Points sorted into blocks of neighbours in feature space, and which blocks see which.

Everything stays on the device: no step waits for the GPU, so that the op can be captured into a
CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastseg.kernels.crf.exact_gaussian_filter_operands import columns_of, keys_kernel

BLOCK = 64
"""Number of points of a block: the rows that one warp group multiplies at once."""

CELL_STRETCH = 32
"""Number of blocks that cells_kernel looks at in a step."""

NEAR_STRETCH = 128
"""Number of blocks that near_blocks_kernel looks at in a step."""


RADIUS = 2.0
"""How far a cell of several blocks may reach from its centre, in standard deviations: exponents are
then sums of terms of a few units, which cost them no digit that weights would miss."""

WIDE = 32.0
"""How far a block may reach from its centre for exponents by a product, which would lose the digits
of larger squares: those of keys of a wider block are computed of differences."""

LIST_ENTRIES = 1 << 26
"""The lists of near blocks take 256 MB at most: more are made anew for each filter, some queries at
a time."""


class Blocks(NamedTuple):
    """The sorted points of B images, padded to P of whole blocks with copies of the last point.

    Attributes:
        order: where each sorted point lies in its image, (B, P) int32, P a multiple of BLOCK.
        features: features of the points, (B, P, dims) float32, dims the next power of two from 16,
            zeros behind d.
        lower: lower corners of the blocks' boxes, (B, d, P / BLOCK).
        upper: upper corners of the blocks' boxes, (B, d, P / BLOCK).
        cells: the first block of each block's cell, (B, P / BLOCK) int32, see
            :mod:`fastseg.kernels.crf.exact_gaussian_filter_operands`; ``-1 - block`` for one that
            is too wide.
        centers: centre of each block's cell, (B, P / BLOCK, dims).
        keys: rows of the product of exponents, (B, P, columns) float16.
        counts: number of blocks near each block, (B, P / BLOCK) int32.
        lists: their numbers in the image, ascending, (B, P / BLOCK, P / BLOCK) int32; or
            (B, P / BLOCK, 0), where they are too many to be kept.
    """

    order: Tensor
    features: Tensor
    lower: Tensor
    upper: Tensor
    cells: Tensor
    centers: Tensor
    keys: Tensor
    counts: Tensor
    lists: Tensor

    @property
    def dims(self) -> int:
        """Number of dimensions of a point."""
        return self.lower.shape[1]

    @property
    def blocks(self) -> int:
        """Number of blocks of an image."""
        return self.cells.shape[1]

    @property
    def rows(self) -> int:
        """Number of blocks of all images."""
        return self.cells.numel()

    def constants(self) -> dict[str, int]:
        """What kernels of these points are compiled with."""
        dims, columns = self.features.shape[2], self.keys.shape[2]
        return {"BLOCK": BLOCK, "D": self.dims, "DIMS": dims, "COLUMNS": columns}


def block_forms(features: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of the tensors of :class:`Blocks`, for points (B, d, N)."""
    batch, d, n = features.shape
    blocks = (n + BLOCK - 1) // BLOCK
    padded, dims = blocks * BLOCK, padded_size(d)
    listed = blocks if batch * blocks * blocks <= LIST_ENTRIES else 0
    return [
        ((batch, padded), torch.int32),
        ((batch, padded, dims), torch.float32),
        ((batch, d, blocks), torch.float32),
        ((batch, d, blocks), torch.float32),
        ((batch, blocks), torch.int32),
        ((batch, blocks, dims), torch.float32),
        ((batch, padded, columns_of(d)), torch.float16),
        ((batch, blocks), torch.int32),
        ((batch, blocks, listed), torch.int32),
    ]


def sort_into_blocks(features: Tensor, limit: float) -> Blocks:
    """The blocks of points (B, d, N), float32.

    Args:
        features: the points.
        limit: the squared distance up to which blocks are near one another.
    """
    batch, d, n = features.shape
    out = Blocks(*(features.new_empty(s, dtype=t) for s, t in block_forms(features)))
    if batch * n == 0:
        return out
    order = kd_order(features)
    padding = order[:, -1:].expand(batch, out.order.shape[1] - n)
    out.order[:] = order = torch.cat([order, padding], 1)
    points = features.gather(2, order[:, None].expand(batch, d, -1))
    torch.aminmax(points.unflatten(2, (-1, BLOCK)), dim=-1, out=(out.lower, out.upper))
    out.features[..., :d] = points.transpose(1, 2)
    out.features[..., d:] = 0
    make_cells(out)
    make_keys(out)
    if out.lists.numel() > 0:
        find_near_blocks(out, 0, limit, out.counts.flatten(), out.lists.flatten(0, 1))
    return out


def padded_size(n: int) -> int:
    """The next power of two, from the 16 that a matrix product takes at least."""
    return max(16, triton.next_power_of_2(n))


def kd_order(features: Tensor) -> Tensor:
    """The order of a k-d tree with leaves of BLOCK points, (B, N) int64.

    Level by level, each segment is sorted along its own widest axis and cut in the middle of its
    blocks, by one sort of all points by (segment, coordinate).
    """
    batch, d, n = features.shape
    blocks = triton.cdiv(n, BLOCK)
    block = torch.arange(n, device=features.device) // BLOCK
    order = torch.arange(n, device=features.device).expand(batch, n)
    points = features
    segments = 1
    while segments < blocks:
        # Segment k holds the blocks from floor(k blocks / segments).
        segment = ((block + 1) * segments - 1) // blocks
        index = segment.expand(batch, d, n)
        size = points.new_zeros((batch, d, segments))
        size = size.scatter_reduce(2, index, points, "amax", include_self=False)
        size -= torch.zeros_like(size).scatter_reduce(2, index, points, "amin", include_self=False)
        axis = size.argmax(1)[:, segment]
        coordinate = ascending_integers(points.gather(1, axis[:, None])[:, 0])
        by_coordinate = torch.argsort((segment << 32) + coordinate, dim=1, stable=True)
        order = order.gather(1, by_coordinate)
        points = points.gather(2, by_coordinate[:, None].expand(batch, d, n))
        segments *= 2
    return order


def ascending_integers(x: Tensor) -> Tensor:
    """Integers in [0, 2^32) of the same order as float32 x."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) + (1 << 31)


@triton.jit
def cells_kernel(
    lower,
    upper,
    cells,
    centers,
    blocks,
    radius,
    wide,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    STRETCH: tl.constexpr,
):
    """Program r: the cell of block r, counted over (B, blocks): nodes of the tree from its root."""
    row = tl.program_id(0).to(tl.int64)
    block = row % blocks
    image = (row // blocks) * D * blocks
    dim = tl.arange(0, DIMS)
    at = image + dim[:, None] * blocks
    exists = (dim < D)[:, None]
    segments, first = block * 0 + 1, block * 0
    center = tl.zeros((DIMS,), tl.float32)
    square = 0.0
    searching = True
    while searching:
        segment = ((block + 1) * segments - 1) // blocks
        first = segment * blocks // segments
        end = (segment + 1) * blocks // segments
        low = tl.full((DIMS,), float("inf"), tl.float32)
        high = tl.full((DIMS,), float("-inf"), tl.float32)
        for start in range(first, end, STRETCH):
            other = start + tl.arange(0, STRETCH)
            mask = exists & (other < end)[None, :]
            lows = tl.load(lower + at + other[None, :], mask, float("inf"))
            highs = tl.load(upper + at + other[None, :], mask, float("-inf"))
            low, high = tl.minimum(low, tl.min(lows, 1)), tl.maximum(high, tl.max(highs, 1))
        low, high = tl.where(dim < D, low, 0.0), tl.where(dim < D, high, 0.0)
        center = 0.5 * low + 0.5 * high  # their sum may overflow
        reach = high - center
        square = tl.sum(reach * reach, 0)
        searching = (square > radius * radius) & (end - first > 1)
        segments *= 2
    tl.store(cells + row, tl.where(square > wide * wide, -1 - first, first).to(tl.int32))
    tl.store(centers + row * DIMS + dim, center)


def make_cells(blocks: Blocks) -> None:
    """Fills cells and centers."""
    constants = blocks.constants()
    cells_kernel[(blocks.rows,)](
        blocks.lower,
        blocks.upper,
        blocks.cells,
        blocks.centers,
        blocks.blocks,
        RADIUS,
        WIDE,
        D=constants["D"],
        DIMS=constants["DIMS"],
        STRETCH=CELL_STRETCH,
    )


def make_keys(blocks: Blocks) -> None:
    """Fills keys."""
    keys_kernel[(blocks.rows,)](blocks.features, blocks.centers, blocks.keys, **blocks.constants())


@triton.jit
def near_blocks_kernel(
    lower, upper, counts, lists, first_row, blocks, dims, limit, STRETCH: tl.constexpr
):
    """The blocks whose boxes come within the squared distance `limit` of each block's box.

    Program r: block first_row + r, counted over (B, blocks); lists[r] and counts[r], ascending.
    """
    row = tl.program_id(0)
    block = (first_row + row) % blocks
    image = ((first_row + row) // blocks).to(tl.int64) * dims * blocks
    count = 0
    for first in range(0, blocks, STRETCH):
        other = first + tl.arange(0, STRETCH)
        exists = other < blocks
        square = tl.zeros((STRETCH,), tl.float32)
        for a in range(dims):
            axis = image + a * blocks
            below = tl.load(lower + axis + other, exists, 0.0) - tl.load(upper + axis + block)
            above = tl.load(lower + axis + block) - tl.load(upper + axis + other, exists, 0.0)
            gap = tl.maximum(tl.maximum(below, above), 0.0)
            square += gap * gap
        near = ((square <= limit) & exists).to(tl.int32)
        at = count + tl.cumsum(near, 0) - near
        tl.store(lists + row.to(tl.int64) * blocks + at, other, near != 0)
        count += tl.sum(near, 0)
    tl.store(counts + row, count)


def find_near_blocks(
    blocks: Blocks, first_row: int, limit: float, counts: Tensor, lists: Tensor
) -> None:
    """Fills counts, (rows,), and lists, (rows, blocks), int32, for rows from first_row."""
    near_blocks_kernel[(counts.shape[0],)](
        blocks.lower,
        blocks.upper,
        counts,
        lists,
        first_row,
        blocks.blocks,
        blocks.lower.shape[1],
        limit,
        STRETCH=NEAR_STRETCH,
    )
