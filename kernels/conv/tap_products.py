"""The Triton kernels of convolutions with few outputs: one product for all taps, then shifts.

An implicit product reads a pixel anew for each tap, and a tile of few output channels keeps the
matrix units waiting for it. Here all taps' outputs are columns of one product over the channels,

    products[q, (tap, co)] = sum over ci of x[q, ci] * weight[co, tap, ci]

in which a pixel is read once for some hundred columns, and a second kernel moves each tap's columns
to where they belong:

    sums[p, co] = sum over live taps of products[p + tap, (tap, co)]

The pixels q are sorted by the taps that any output reads them by (the live taps of the transposed
convolution, see :mod:`fastseg.kernels.conv.tiles`), and a tile's columns are those taps' alone:
what falls into padding is not multiplied. Both kernels compute in float32 and in one order:
deterministic. :mod:`fastseg.kernels.conv.few_outputs` launches them.

Floor: 2 * Ci * Co FLOPs for each (pixel, live tap), as for any form; bytes besides: the products,
4 * Co for each (pixel, live tap), written and read. DeepLab v2's head, 2048 -> 21 at four rates
on 41 x 41, a batch of 8: 30 microseconds of FLOPs at 790 TFLOP/s; 24 MB of products. These figures
are arithmetic: no run on a GPU stands behind them.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from fastseg.kernels.conv.epilogue import epilogue

PART = tl.constexpr(8192)
"""Number of sums that are stored at once: the pointers of more would not fit beside the sums."""

UNROLL = tl.constexpr(4)
"""Number of taps whose products add_taps_kernel loads before it waits for one."""

VECTOR = tl.constexpr(4)
"""Number of products that are loaded at once, 16 bytes."""

COLUMN = tl.constexpr(3)
"""Integers in a row of the tables of columns and of taps."""

ITEM = tl.constexpr(5)
"""Integers in a row of the table of items."""


class Maps(NamedTuple):
    """Integers: sizes of x (N, height, width, channels), of the output, and of the products.

    Attributes:
        height: of x.
        width: of x.
        channels: of x.
        out_height: of the output.
        out_width: of the output.
        outputs: number of output channels.
        pixels: number of pixels of x, in all images.
        out_pixels: number of pixels of the output, in all images.
        stride: number of columns of the products.
        parts: number of the products' parts, each the sum over some of the channels.
    """

    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    outputs: int
    pixels: int
    out_pixels: int
    stride: int
    parts: int


class ProductForm(NamedTuple):
    """The constants that tap_products_kernel is compiled with.

    Attributes:
        BM: number of pixels of a program.
        BN: number of its columns.
        BK: number of input channels of a step.
        WHOLE: whether BK divides the channels.
        ALIGNED: whether all rows of x and of the weights begin at multiples of 16 bytes.
        PRECISION: what `tl.dot` does with float32, "tf32" or "tf32x3".
    """

    BM: int
    BN: int
    BK: int
    WHOLE: bool
    ALIGNED: bool
    PRECISION: str


@triton.jit
def store_products(sums, rows, entries, BM: tl.constexpr, BN: tl.constexpr):
    """Stores sums (BM, BN) at rows (BM,), pointers, and the columns that `entries` tell."""
    if BM * BN > PART:
        HALF: tl.constexpr = BN // 2
        left, right = sums.reshape(BM, 2, HALF).permute(0, 2, 1).split()
        store_products(left, rows, entries, BM, HALF)
        store_products(right, rows, entries + HALF * COLUMN, BM, HALF)
    else:
        column = tl.load(entries + tl.arange(0, BN) * COLUMN + 2)
        tl.store(rows[:, None] + column[None, :], sums)


@triton.jit
def tap_products_kernel(x, weights, products, items, pixels, columns, maps, FORM: tl.constexpr):
    """Program i: the products of the i-th item, BM pixels by BN columns over some chunks.

    x: (N, height, width, channels). weights: for each branch a pointer to (Co, taps, channels).
    products: float32 (parts, pixels, stride). items: rows of (tile, first entry of `columns`, part,
    first chunk of BK channels, end of the chunks). pixels: (tiles, BM). columns: rows of (branch,
    row of its weight, column of the products).
    """
    BM: tl.constexpr = FORM.BM
    BN: tl.constexpr = FORM.BN
    BK: tl.constexpr = FORM.BK
    channels = maps.channels
    item = items + tl.program_id(0) * ITEM
    tile, part = tl.load(item), tl.load(item + 2)
    entries = columns + tl.load(item + 1) * COLUMN
    of_tile = pixels + tile.to(tl.int64) * BM + tl.arange(0, BM)
    entry = entries + tl.arange(0, BN) * COLUMN
    branch = tl.load(entry)
    b_rows = weights[0] + tl.zeros((BN,), tl.int64)
    for i in tl.static_range(1, len(weights)):
        b_rows = tl.where(branch == i, weights[i] + tl.zeros((BN,), tl.int64), b_rows)
    b_rows += tl.load(entry + 1).to(tl.int64) * channels
    a_rows = x + tl.load(of_tile).to(tl.int64) * channels
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    for chunk in range(tl.load(item + 3), tl.load(item + 4)):
        channel = (chunk * BK + k)[None, :]
        a_pointers, b_pointers = a_rows[:, None] + channel, b_rows[:, None] + channel
        if FORM.ALIGNED:
            a_pointers = tl.multiple_of(a_pointers, (16, 16))
            b_pointers = tl.multiple_of(b_pointers, (16, 16))
        if FORM.WHOLE:
            a, b = tl.load(a_pointers), tl.load(b_pointers)
        else:
            a = tl.load(a_pointers, channel < channels, 0.0)
            b = tl.load(b_pointers, channel < channels, 0.0)
        sums = tl.dot(a, b.T, sums, input_precision=FORM.PRECISION)
    # Anew, so that they take no registers in the loop.
    pixel = tl.load(of_tile)
    rows = products + (part * maps.pixels + pixel) * maps.stride
    store_products(sums, rows, entries, BM, BN)


@triton.jit
def add_taps_kernel(
    products,
    out,
    operands,
    more_shifts,
    taps,
    count,
    maps,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PITCH: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program i: the i-th PIXELS outputs, all channels, CHANNELS or fewer.

    products: what tap_products_kernel stores. operands: `Operands`. more_shifts: a tuple of
    pointers to further vectors that are added. taps: `count` rows of (first column of the products,
    dy, dx), a multiple of UNROLL; rows that fill it up are of taps that no output reads. PITCH:
    number of columns of a tap, a multiple of VECTOR; those beyond the outputs hold nothing.
    """
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    row = pixel // maps.out_width
    x, y = pixel % maps.out_width, row % maps.out_height
    first_row = row // maps.out_height * maps.height
    channel = tl.arange(0, CHANNELS)[None, :]
    channel_exists = channel < maps.outputs
    pixel_exists = pixel < maps.out_pixels
    exists = pixel_exists[:, None] & channel_exists
    sums = tl.zeros((PIXELS, CHANNELS), tl.float32)
    of_part = products
    for _ in range(maps.parts):
        for first in range(0, count, UNROLL):
            for i in tl.static_range(UNROLL):
                entry = taps + (first + i) * COLUMN
                top, left = y + tl.load(entry + 1), x + tl.load(entry + 2)
                live = (top >= 0) & (top < maps.height) & (left >= 0) & (left < maps.width)
                live &= pixel_exists
                top = tl.where(live, top, 0)  # others may lie where 32 bits do not count
                at = ((first_row + top) * maps.width + left) * maps.stride
                at += tl.multiple_of(tl.load(entry), VECTOR)
                # By PITCH, not by the outputs: so the compiler sees loads of 16 bytes.
                wanted = live[:, None] & (channel < PITCH)
                sums += tl.load(of_part + (at[:, None] + channel), wanted, 0.0)
        of_part += maps.pixels * maps.stride
    for i in tl.static_range(len(more_shifts)):
        sums += tl.load(more_shifts[i] + channel, channel_exists, 0.0).to(tl.float32)
    at = pixel.to(tl.int64)[:, None] * maps.outputs + channel
    sums = epilogue(sums, operands, channel, channel_exists, at, exists, ACTIVATION)
    tl.store(out + at, sums.to(out.dtype.element_ty), exists)
