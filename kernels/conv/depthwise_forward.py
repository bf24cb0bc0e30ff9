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
    """Where a tap of output i reads along an axis of `size`, and whether that exists.

    TRANSPOSED: i counts the input of the convolution, whose output is read.
    """
    if TRANSPOSED:
        to = i + padding - tap * dilation
        at = to // stride
        return at, (to >= 0) & (at * stride == to) & (at < size)
    at = i * stride - padding + tap * dilation
    return at, (at >= 0) & (at < size)


@triton.jit
def tile_pixels(
    tile, tiles_y, tiles_x, phases_y, phases_x, height, width,
    PHASES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile's image, rows and columns of its pixels and which exist, (PHASES * ROWS * COLUMNS,).

    Tiles are counted over (images, groups of PHASES phases, tiles_y, tiles_x).
    """
    lane = tl.arange(0, PHASES * ROWS * COLUMNS)
    phases = phases_y * phases_x
    groups = tl.cdiv(phases, PHASES)
    tile_x, rest = tile % tiles_x, tile // tiles_x
    tile_y, rest = rest % tiles_y, rest // tiles_y
    phase = rest % groups * PHASES + lane // (ROWS * COLUMNS)
    y = (tile_y * ROWS + lane // COLUMNS % ROWS) * phases_y + phase // phases_x
    x = (tile_x * COLUMNS + lane % COLUMNS) * phases_x + phase % phases_x
    return rest // groups, y, x, (phase < phases) & (y < height) & (x < width)


@triton.jit
def channels_last_kernel(
    x, weight, out, bias, scale, shift, residual, channel_vectors, height, width, out_height,
    out_width, stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, phases_y,
    phases_x, tiles_y, tiles_x, VECTOR: tl.constexpr, CHANNELS: tl.constexpr, KH: tl.constexpr,
    KW: tl.constexpr, PHASES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Program t: a block of channels, which change fastest, of a tile of pixels.

    x: (N, height, width, C), C = channel_vectors * VECTOR; weight: (KH * KW, C); out and residual:
    (N, out_height, out_width, C).
    """
    channels = channel_vectors * VECTOR
    blocks = tl.cdiv(channels, CHANNELS)
    channel = (tl.program_id(0) % blocks * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    channel_exists = channel < channels
    image, out_y, out_x, exists = tile_pixels(
        tl.program_id(0) // blocks, tiles_y, tiles_x, phases_y, phases_x, out_height, out_width,
        PHASES, ROWS, COLUMNS,
    )  # fmt: skip
    x += image.to(tl.int64) * height * width * channels
    sums = tl.zeros((PHASES * ROWS * COLUMNS, CHANNELS), tl.float32)
    for a in range(KH):
        y, row_lives = tap_at(out_y, a, stride_y, padding_y, dilation_y, height, TRANSPOSED)
        for b in tl.static_range(KW):
            column, lives = tap_at(out_x, b, stride_x, padding_x, dilation_x, width, TRANSPOSED)
            at = (y * width + column).to(tl.int64)[:, None] * channels + channel
            lives = (exists & row_lives & lives)[:, None] & channel_exists
            value = tl.load(x + at, lives, 0.0).to(tl.float32)
            factor = tl.load(weight + (a * KW + b) * channels + channel, channel_exists, 0.0)
            sums += value * factor.to(tl.float32)
    pixel = (image.to(tl.int64) * out_height + out_y) * out_width + out_x
    at = pixel[:, None] * channels + channel
    exists = exists[:, None] & channel_exists
    sums = epilogue(
        sums, bias, scale, shift, residual, channel, channel_exists, at, exists, ACTIVATION
    )
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)


@triton.jit
def block_pixels(block, height, width, phases, BLOCK: tl.constexpr):
    """Rows, columns and existence of a BLOCK of a plane's pixels, its rows ordered by phase."""
    i = block * BLOCK + tl.arange(0, BLOCK)
    row, x = i // width, i % width
    rows = tl.cdiv(height, phases)
    y = row % rows * phases + row // rows
    return y, x, (row < rows * phases) & (y < height)


@triton.jit
def contiguous_kernel(
    x, weight, out, bias, scale, shift, residual, channels, height, width, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x, phases_y, blocks,
    KH: tl.constexpr, KW: tl.constexpr, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Program t: the t % blocks-th BLOCK of pixels of plane t // blocks, counted over (N, C).

    x: (N, C, height, width); weight: (C, KH * KW); out and residual: (N, C, out_height, out_width).
    """
    plane = tl.program_id(0) // blocks
    channel = plane % channels
    out_y, out_x, exists = block_pixels(
        tl.program_id(0) % blocks, out_height, out_width, phases_y, BLOCK
    )
    x += plane.to(tl.int64) * height * width
    weight += channel * (KH * KW)
    sums = tl.zeros((BLOCK,), tl.float32)
    for a in range(KH):
        y, row_lives = tap_at(out_y, a, stride_y, padding_y, dilation_y, height, TRANSPOSED)
        for b in tl.static_range(KW):
            column, lives = tap_at(out_x, b, stride_x, padding_x, dilation_x, width, TRANSPOSED)
            value = tl.load(x + (y * width + column), exists & row_lives & lives, 0.0)
            sums += value.to(tl.float32) * tl.load(weight + (a * KW + b)).to(tl.float32)
    at = plane.to(tl.int64) * out_height * out_width + (out_y * out_width + out_x)
    sums = epilogue(sums, bias, scale, shift, residual, channel, True, at, exists, ACTIVATION)
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)
