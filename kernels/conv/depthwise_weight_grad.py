"""The Triton kernels of the gradient of a depthwise convolution's weight, one for each layout.

A program sums the products of a run of tiles for its channels, in registers, and stores one value
for each channel and tap to its own place: deterministic.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastseg.kernels.conv.depthwise_forward import (
    block_pixels,
    column_at,
    row_at,
    tile_pixels,
)


@triton.jit
def zeros(COUNT: tl.constexpr, SHAPE: tl.constexpr):
    """A tuple of COUNT blocks of zeros."""
    blocks = ()
    for _ in tl.static_range(COUNT):
        blocks = blocks + (tl.zeros(SHAPE, tl.float32),)  # noqa: RUF005 (Triton knows no stars)
    return blocks


@triton.jit
def first_tile(run, runs, tiles):
    """The number of the first tile of a run, where `runs` runs share the tiles evenly."""
    return (run * tiles // runs).to(tl.int32)


@triton.jit
def channels_last_weight_grad_kernel(
    x,
    grad,
    out,
    channel_vectors,
    window,
    tiling,
    TILE: tl.constexpr,
    VECTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    KW: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Program (c, s, r): a block of channels, a run of the tiles, TAP_ROWS rows of the kernel.

    x: (N, height, width, C), C = channel_vectors * VECTOR; grad: (N, out_height, out_width, C);
    out: (runs, kh * KW, C). LANES: pixels that threads hold at a time; more of a tile's are
    summed by the thread that holds them.
    """
    pixels: tl.constexpr = TILE.PHASES * TILE.ROWS * TILE.COLUMNS
    height, width = window.height, window.width
    out_height, out_width = window.out_height, window.out_width
    channels = channel_vectors * VECTOR
    channel = (tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS))[None, :]
    channel_exists = channel < channels
    first_row = tl.program_id(2) * TAP_ROWS
    sums = zeros(TAP_ROWS * KW, (LANES, CHANNELS))
    run, runs = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    for tile in range(first_tile(run, runs, tiling.tiles), first_tile(run + 1, runs, tiling.tiles)):
        image, out_y, out_x, exists = tile_pixels(tile, tiling, out_height, out_width, TILE)
        pixel = (image.to(tl.int64) * out_height + out_y) * out_width + out_x
        at = pixel[:, None] * channels + channel
        factor = tl.load(grad + at, exists[:, None] & channel_exists, 0.0).to(tl.float32)
        base = x + image.to(tl.int64) * height * width * channels
        added = ()
        for a in tl.static_range(TAP_ROWS):
            y, row_lives = row_at(out_y, first_row + a, window, False)
            for b in tl.static_range(KW):
                column, lives = column_at(out_x, b, window, False)
                lives = (exists & row_lives & lives)[:, None]
                at = (y * width + column).to(tl.int64)[:, None] * channels + channel
                value = tl.load(base + at, lives & channel_exists, 0.0).to(tl.float32)
                # Not 0 * grad: that is NaN where grad is infinite.
                product = tl.where(lives, value * factor, 0.0)
                product = tl.sum(product.reshape(pixels // LANES, LANES, CHANNELS), 0)
                added = added + (sums[a * KW + b] + product,)  # noqa: RUF005
        sums = added
    taps = tl.num_programs(2) * TAP_ROWS * KW
    out += (run * taps + first_row * KW) * channels
    for tap in tl.static_range(TAP_ROWS * KW):
        total = tl.sum(sums[tap], 0)[None, :]
        tl.store(out + tap * channels + channel, total, channel_exists)


@triton.jit
def contiguous_weight_grad_kernel(
    x,
    grad,
    out,
    channels,
    window,
    phases_y,
    blocks,
    tiles,
    KW: tl.constexpr,
    TAP_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    """Program (c, s, r): a channel, a run of the tiles, TAP_ROWS rows of the kernel.

    Tiles are BLOCKs of pixels, `blocks` of them in each image. x: (N, C, height, width); grad:
    (N, C, out_height, out_width); out: (runs, kh * KW, C).
    """
    height, width = window.height, window.width
    out_height, out_width = window.out_height, window.out_width
    channel = tl.program_id(0)
    first_row = tl.program_id(2) * TAP_ROWS
    sums = zeros(TAP_ROWS * KW, (LANES,))
    run, runs = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    for tile in range(first_tile(run, runs, tiles), first_tile(run + 1, runs, tiles)):
        out_y, out_x, exists = block_pixels(tile % blocks, out_height, out_width, phases_y, BLOCK)
        plane = (tile // blocks).to(tl.int64) * channels + channel
        at = plane * out_height * out_width + (out_y * out_width + out_x)
        factor = tl.load(grad + at, exists, 0.0).to(tl.float32)
        base = x + plane * height * width
        added = ()
        for a in tl.static_range(TAP_ROWS):
            y, row_lives = row_at(out_y, first_row + a, window, False)
            for b in tl.static_range(KW):
                column, lives = column_at(out_x, b, window, False)
                lives = exists & row_lives & lives
                value = tl.load(base + (y * width + column), lives, 0.0).to(tl.float32)
                product = tl.where(lives, value * factor, 0.0)
                product = tl.sum(product.reshape(BLOCK // LANES, LANES), 0)
                added = added + (sums[a * KW + b] + product,)  # noqa: RUF005
        sums = added
    taps = tl.num_programs(2) * TAP_ROWS * KW
    out += (run * taps + first_row * KW) * channels + channel
    for tap in tl.static_range(TAP_ROWS * KW):
        tl.store(out + tap * channels, tl.sum(sums[tap], 0))
