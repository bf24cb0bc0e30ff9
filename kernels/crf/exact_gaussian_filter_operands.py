"""Operands of the exact Gaussian filter's matrix products, all of them of 16 bits.

**Exponents.** With x and y a query and a key from a common centre, times sqrt(log2(e)), the
exponent of 2 is ``x.y - |x|^2 / 2 - |y|^2 / 2``. All of it is one product of rows of float16: each
coordinate is split into a high and a low half of 11 bits, and a row has the columns

====== ============ ============ ============= =================
        d columns    d columns    d columns     3 and 3 columns
====== ============ ============ ============= =================
query   high         high         low           1, its -|x|^2/2
key     high         low          high          its -|y|^2/2, 1
====== ============ ============ ============= =================

with a square in three parts, the first of which counts SQUARE_UNIT. Squares
leave out the products of two low halves, as the product does, so that the weight of a point with
itself is 1.

**Centres.** |f|^2 is in the thousands for colours over a bandwidth of 3, where even float32 would
lose the digits that matter. Keys are taken from the centre of their *cell*: the largest node of the
k-d tree that holds their block and reaches no further than RADIUS from its centre, or the block.
So they depend on no query, and are made once. Queries are made anew for each cell of keys; the
blocks of a cell follow one another. A block that reaches too far has exponents of differences
instead, which take twice as long.

**Values** of float32 are split too, after a division by a power of two for each block and channel,
for float16 has few exponents: what lies more than 39 bits below the largest of them is lost.
"""

from __future__ import annotations

import triton
import triton.language as tl

SQRT_LOG2_E = tl.constexpr(1.2011224087864498)

SHIFT = tl.constexpr(14)
"""Weights are multiplied by 2 to this power, so that few of their halves are subnormal."""

WEIGHT_UNIT = tl.constexpr(2.0**-14)
"""What a weight so multiplied counts."""

VALUE_SHIFT = tl.constexpr(13)
"""The largest value of a block is at least 2 to this power once it is divided."""

VALUE_FACTOR = tl.constexpr(2.0**13)
EXPONENT_ONE = tl.constexpr(1 << 23)
"""The bits of float32 that double a number."""

SQUARE_UNIT = tl.constexpr(256.0)
"""What the first part of a square counts: squares up to 2^24 fit."""

LARGEST_SQUARE = tl.constexpr(1.6e7)
"""Half the square of the longest query; coordinates are cut off there, where weights are 0."""


def columns_of(dims: int) -> int:
    """The number of columns of a row for points of `dims` dimensions, a power of two."""
    return max(16, triton.next_power_of_2(3 * dims + 6))


@triton.jit
def exponent_rows(
    features,
    center,
    BLOCK: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The rows (BLOCK, COLUMNS) float16 of a block of keys or, times 2^SHIFT, of queries.

    Features and center are pointers to the block's first point and to the centre.
    """
    lane, column = tl.arange(0, BLOCK), tl.arange(0, COLUMNS)
    part, dim = column // D, column % D
    x = tl.load(features + lane[:, None] * DIMS + dim[None, :])
    x = (x - tl.load(center + dim)[None, :]) * SQRT_LOG2_E
    longest: tl.constexpr = (2 * LARGEST_SQUARE / D) ** 0.5
    x = tl.clamp(x, -longest, longest)
    high = x.to(tl.float16)
    whole = high.to(tl.float32)
    low = (x - whole).to(tl.float16)
    squares = tl.where((part == 0)[None, :], whole * (whole + 2 * low.to(tl.float32)), 0.0)
    square = (0.0 if KEYS else SHIFT) - 0.5 * tl.sum(squares, 1)
    first = (square / SQUARE_UNIT).to(tl.float16)
    rest = square - first.to(tl.float32) * SQUARE_UNIT
    second = rest.to(tl.float16)
    third = (rest - second.to(tl.float32)).to(tl.float16)
    at = column - (3 * D if KEYS else 3 * D + 3)  # of the square's parts
    factor = column - (3 * D + 3 if KEYS else 3 * D)  # of the other side's square
    factors = tl.where(factor == 0, SQUARE_UNIT, 1.0) * ((factor >= 0) & (factor < 3))
    rows = tl.where((part == (1 if KEYS else 2))[None, :], low, high)
    rows = tl.where((part < 3)[None, :], rows, factors.to(tl.float16)[None, :])
    rows = tl.where((at == 0)[None, :], first[:, None], rows)
    rows = tl.where((at == 1)[None, :], second[:, None], rows)
    return tl.where((at == 2)[None, :], third[:, None], rows)


@triton.jit
def exponent_of_differences(
    queries,
    keys,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
):
    """What the product of exponents' rows is, (QUERIES, KEYS), of features apart from one another.

    Queries and keys are pointers to the features of the first ones.
    """
    query, key = tl.arange(0, QUERIES) * DIMS, tl.arange(0, KEYS) * DIMS
    square = tl.zeros((QUERIES, KEYS), tl.float32)
    for a in tl.static_range(D):
        difference = tl.load(queries + query + a)[:, None] - tl.load(keys + key + a)[None, :]
        square += difference * difference
    return SHIFT - (0.5 * SQRT_LOG2_E * SQRT_LOG2_E) * square


@triton.jit
def keys_kernel(
    features,
    centers,
    keys,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Program r: the rows of keys of block r, counted over (B, blocks)."""
    row = tl.program_id(0).to(tl.int64)
    features += row * BLOCK * DIMS
    rows = exponent_rows(features, centers + row * DIMS, BLOCK, True, D, DIMS, COLUMNS)
    to = tl.arange(0, BLOCK)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    tl.store(keys + row * BLOCK * COLUMNS + to, rows)


@triton.jit
def rows_kernel(
    values,
    order,
    high,
    low,
    scales,
    blocks,
    points,
    channels,
    image_stride,
    channel_stride,
    point_stride,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Program (r, k): the k-th chunk of channels of the points of block r, in their order.

    values: (B, channels, points) of any strides; high, low: (chunks, B * P, CHANNELS), zeros where
    there are no points or channels; scales: (chunks, B * P / BLOCK, CHANNELS). HALVES is 0 for the
    values themselves, 1 for their high halves, 2 for both.
    """
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    lane, channel = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    rows = tl.num_programs(0)
    at = chunk * CHANNELS + channel
    exists = ((row % blocks) * BLOCK + lane < points)[:, None] & (at < channels)[None, :]
    point = tl.load(order + row * BLOCK + lane).to(tl.int64)
    values += (row // blocks) * image_stride
    x = tl.load(values + point[:, None] * point_stride + at[None, :] * channel_stride, exists, 0.0)
    to = (chunk * rows + row) * BLOCK + lane
    to = to[:, None] * CHANNELS + channel[None, :]
    if HALVES > 0:
        bits = tl.max(tl.abs(x), 0).to(tl.int32, bitcast=True) & 0x7F800000
        # Not so small that the scale underflows, not so large that its inverse does.
        bits = tl.minimum(tl.maximum(bits, (127 - 99) * EXPONENT_ONE), (127 + 126) * EXPONENT_ONE)
        inverse = (-bits + 254 * EXPONENT_ONE).to(tl.float32, bitcast=True)
        x = x * inverse[None, :] * VALUE_FACTOR
        scale = (bits - (SHIFT + VALUE_SHIFT) * EXPONENT_ONE).to(tl.float32, bitcast=True)
        tl.store(scales + (chunk * rows + row) * CHANNELS + channel, scale)
        half = x.to(tl.float16)
        if HALVES > 1:
            tl.store(low + to, (x - half.to(tl.float32)).to(tl.float16))
        x = half
    tl.store(high + to, x)
