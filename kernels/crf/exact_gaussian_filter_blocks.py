"""Points sorted into blocks of neighbours in feature space, and which blocks see which.

Everything stays on the device: no step waits for the GPU, so that the op can be captured into a
CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 64
"""Number of points of a block: the rows that one warp group multiplies at once."""

NEAR_STRETCH = 128
"""Number of blocks that near_blocks_kernel looks at in a step."""


class Blocks(NamedTuple):
    """The sorted points of B images, padded to whole blocks with copies of the last point.

    Attributes:
        order: where each sorted point lies in its image, (B, P) int64, P a multiple of BLOCK.
        features: features of the points, (B * P, dims) float32, dims the next power of two from 16,
            zeros behind d.
        centers: centres of the blocks' boxes, (B * P / BLOCK, dims).
        lower: lower corners of the boxes, (B, d, P / BLOCK).
        upper: upper corners of the boxes, (B, d, P / BLOCK).
    """

    order: Tensor
    features: Tensor
    centers: Tensor
    lower: Tensor
    upper: Tensor

    @property
    def blocks(self) -> int:
        """Number of blocks of an image."""
        return self.order.shape[1] // BLOCK


def sort_into_blocks(features: Tensor) -> Blocks:
    """The blocks of points (B, d, N), N >= 1, float32."""
    batch, d, n = features.shape
    order = kd_order(features)
    blocks = triton.cdiv(n, BLOCK)
    order = torch.cat([order, order[:, -1:].expand(batch, blocks * BLOCK - n)], 1)
    points = features.gather(2, order[:, None].expand(batch, d, -1))
    in_blocks = points.view(batch, d, blocks, BLOCK)
    lower, upper = in_blocks.amin(-1), in_blocks.amax(-1)
    padding = (0, padded_size(d) - d)
    rows = F.pad(points.transpose(1, 2), padding).flatten(0, 1)
    centers = F.pad(((lower + upper) / 2).transpose(1, 2), padding).flatten(0, 1)
    return Blocks(order, rows.contiguous(), centers.contiguous(), lower, upper)


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
