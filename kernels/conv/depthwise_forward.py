"""The Triton kernels of depthwise convolution, one for each layout.

The taps of a row are unrolled, the rows are not: the loads of one are enough in flight, and those
of all would not fit registers beside the epilogue.

Outputs at which a tap moves to its neighbour's place are taken together: at rate d, pixels d apart.
Numbered like that, a convolution is d * d ordinary ones, the phases, and what a program reads for
one tap is in its cache for the next.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastseg.kernels.conv.epilogue import epilogue


@triton.jit
def tap_at(i, tap, stride, padding, dilation, size, TRANSPOSED: tl.constexpr):
    """The place that a tap of output i reads along an axis of `size`, and whether it exists.

    If TRANSPOSED, i counts the input of the convolution, whose output is read.
    """
    if TRANSPOSED:
        to = i + padding - tap * dilation
        at = to // stride
        return at, (to >= 0) & (at * stride == to) & (at < size)
    at = i * stride - padding + tap * dilation
    return at, (at >= 0) & (at < size)


@triton.jit
def tile_pixels(tile, tiling, height, width, TILE: tl.constexpr):
    """The image of a tile; rows, columns and existence of its pixels, (PHASES * ROWS * COLUMNS,).

    Tiles are counted over (images, groups of PHASES phases, tiles_y, tiles_x).
    """
    PHASES: tl.constexpr = TILE.PHASES
    ROWS: tl.constexpr = TILE.ROWS
    COLUMNS: tl.constexpr = TILE.COLUMNS
    lane = tl.arange(0, PHASES * ROWS * COLUMNS)
    phases = tiling.phases_y * tiling.phases_x
    groups = tl.cdiv(phases, PHASES)
    tile_x, rest = tile % tiling.tiles_x, tile // tiling.tiles_x
    tile_y, rest = rest % tiling.tiles_y, rest // tiling.tiles_y
    phase = rest % groups * PHASES + lane // (ROWS * COLUMNS)
    y = (tile_y * ROWS + lane // COLUMNS % ROWS) * tiling.phases_y + phase // tiling.phases_x
    x = (tile_x * COLUMNS + lane % COLUMNS) * tiling.phases_x + phase % tiling.phases_x
    return rest // groups, y, x, (phase < phases) & (y < height) & (x < width)


@triton.jit
def row_at(i, tap, window, TRANSPOSED: tl.constexpr):
    """What `tap_at` returns of rows i of the output."""
    return tap_at(
        i, tap, window.stride_y, window.padding_y, window.dilation_y, window.height, TRANSPOSED
    )


@triton.jit
def column_at(i, tap, window, TRANSPOSED: tl.constexpr):
    """What `tap_at` returns of columns i of the output."""
    return tap_at(
        i, tap, window.stride_x, window.padding_x, window.dilation_x, window.width, TRANSPOSED
    )


@triton.jit
def channels_last_kernel(
    x,
    weight,
    out,
    operands,
    channel_vectors,
    window,
    tiling,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program t: a block of channels, which change fastest, of a tile of pixels.

    x: (N, height, width, C), C = channel_vectors * VECTOR; weight: (KH * KW, C); out and residual:
    (N, out_height, out_width, C).
    """
    pixels: tl.constexpr = TILE.PHASES * TILE.ROWS * TILE.COLUMNS
    width, out_height, out_width = window.width, window.out_height, window.out_width
    channels = channel_vectors * VECTOR
    blocks = tl.cdiv(channels, CHANNELS)
    channel = (tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    channel_exists = channel < channels
    tile = tl.program_id(0) // blocks
    image, out_y, out_x, exists = tile_pixels(tile, tiling, out_height, out_width, TILE)
    x += image.to(tl.int64) * window.height * width * channels
    sums = tl.zeros((pixels, CHANNELS), tl.float32)
    for a in range(KH):
        y, row_lives = row_at(out_y, a, window, TRANSPOSED)
        for b in tl.static_range(KW):
            column, lives = column_at(out_x, b, window, TRANSPOSED)
            at = (y * width + column).to(tl.int64)[:, None] * channels + channel
            lives = (exists & row_lives & lives)[:, None] & channel_exists
            value = tl.load(x + at, lives, 0.0).to(tl.float32)
            factor = tl.load(weight + (a * KW + b) * channels + channel, channel_exists, 0.0)
            sums += value * factor.to(tl.float32)
    pixel = (image.to(tl.int64) * out_height + out_y) * out_width + out_x
    at = pixel[:, None] * channels + channel
    exists = exists[:, None] & channel_exists
    sums = epilogue(sums, operands, channel, channel_exists, at, exists, ACTIVATION)
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)


@triton.jit
def block_pixels(block, height, width, phases, BLOCK: tl.constexpr):
    """Rows, columns and existence of a BLOCK of a plane's pixels; rows are ordered by phase."""
    i = block * BLOCK + tl.arange(0, BLOCK)
    row, x = i // width, i % width
    rows = tl.cdiv(height, phases)
    y = row % rows * phases + row // rows
    return y, x, (row < rows * phases) & (y < height)


@triton.jit
def contiguous_kernel(
    x,
    weight,
    out,
    operands,
    channels,
    window,
    phases_y,
    blocks,
    KH: tl.constexpr,
    KW: tl.constexpr,
    BLOCK: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program t: the t % blocks-th BLOCK of pixels of plane t // blocks, counted over (N, C).

    x: (N, C, height, width); weight: (C, KH * KW); out and residual: (N, C, out_height, out_width).
    """
    width, out_height, out_width = window.width, window.out_height, window.out_width
    plane = tl.program_id(0) // blocks
    channel = plane % channels
    out_y, out_x, exists = block_pixels(
        tl.program_id(0) % blocks, out_height, out_width, phases_y, BLOCK
    )
    x += plane.to(tl.int64) * window.height * width
    weight += channel * (KH * KW)
    sums = tl.zeros((BLOCK,), tl.float32)
    for a in range(KH):
        y, row_lives = row_at(out_y, a, window, TRANSPOSED)
        for b in tl.static_range(KW):
            column, lives = column_at(out_x, b, window, TRANSPOSED)
            value = tl.load(x + (y * width + column), exists & row_lives & lives, 0.0)
            sums += value.to(tl.float32) * tl.load(weight + (a * KW + b)).to(tl.float32)
    at = plane.to(tl.int64) * out_height * out_width + (out_y * out_width + out_x)
    sums = epilogue(sums, operands, channel, True, at, exists, ACTIVATION)
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)
