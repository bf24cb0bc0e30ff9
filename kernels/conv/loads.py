"""What the programs of dense convolutions read: items, pixels of x, weights.

A comes through asynchronous copies, B through a tensor descriptor where its rows are aligned: see
:mod:`fastseg.kernels.conv.forward`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastseg.kernels.conv.arguments import Windows


@triton.jit
def pick(pointers, branch):
    """The element of a tuple at `branch`, a number that the compiler does not know."""
    chosen = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        chosen = tl.where(branch == i, pointers[i], chosen)
    return chosen


@triton.jit
def windows_of(pixel, image):
    """The `Windows` of pixels of the output, counted over (N, out_height, out_width)."""
    row = pixel // image.out_width
    top = row % image.out_height * image.stride_y
    left = pixel % image.out_width * image.stride_x
    origin = (row // image.out_height * image.height + top) * image.width + left
    return Windows(origin, top, left)


@triton.jit
def make_descriptor(
    weight, rows, row_taps, columns, BN: tl.constexpr, BK: tl.constexpr, TRANSPOSED: tl.constexpr
):
    """The descriptor of a weight (rows, row_taps, columns): tiles (BN, 1, BK), or (BK, 1, BN)."""
    return tl.make_tensor_descriptor(
        weight,
        shape=[rows, row_taps, columns],
        strides=[row_taps * columns, columns, 1],
        block_shape=[BK, 1, BN] if TRANSPOSED else [BN, 1, BK],
    )


@triton.jit
def load_weight(source, tap, column, chunk, weight_taps, outputs, channels, FORM: tl.constexpr):
    """A tap's weight, (BK, BN): a chunk of channels by outputs from `column` on; zeros beyond them.

    source: the descriptor of the weight, or the weight where rows are not ALIGNED.
    """
    BN: tl.constexpr = FORM.BN
    BK: tl.constexpr = FORM.BK
    if FORM.ALIGNED and FORM.TRANSPOSED:
        b = source.load([chunk * BK, tap, column]).reshape(BK, BN)
    elif FORM.ALIGNED:
        b = source.load([column, tap, chunk * BK]).reshape(BN, BK).T
    else:
        channel, n = chunk * BK + tl.arange(0, BK), column + tl.arange(0, BN)
        exists = (channel < channels)[:, None] & (n < outputs)[None, :]
        if FORM.TRANSPOSED:
            rows = (channel.to(tl.int64) * weight_taps + tap) * outputs
            b = tl.load(source + rows[:, None] + n[None, :], exists, 0.0)
        else:
            rows = (n.to(tl.int64) * weight_taps + tap) * channels
            b = tl.load(source + rows[None, :] + channel[:, None], exists, 0.0)
    return b


@triton.jit
def source_of(weight, weight_taps, channels, outputs, FORM: tl.constexpr):
    """What `load_weight` reads: a descriptor of the weight, or if not ALIGNED its pointer."""
    if FORM.ALIGNED and FORM.TRANSPOSED:
        source = make_descriptor(weight, channels, weight_taps, outputs, FORM.BN, FORM.BK, True)
    elif FORM.ALIGNED:
        source = make_descriptor(weight, outputs, weight_taps, channels, FORM.BN, FORM.BK, False)
    else:
        source = weight
    return source


@triton.jit
def reads_of(windows, dy, dx, image, FORM: tl.constexpr):
    """Where a tap reads the first channel for some pixels, and whether that is within the map."""
    at = (windows.origin + (dy * image.width + dx)).to(tl.int64) * image.channels
    if FORM.MIXED:
        y, column = windows.top + dy, windows.left + dx
        live = (y >= 0) & (y < image.height) & (column >= 0) & (column < image.width)
    else:
        live = tl.full(at.shape, True, tl.int1)
    return at, live


@triton.jit
def load_pixels(x, at, live, chunk, channels, FORM: tl.constexpr):
    """A chunk of BK channels of what a tap reads, see `reads_of`; zeros in the padding."""
    channel = chunk * FORM.BK + tl.arange(0, FORM.BK)
    pointers = x + at[:, None] + channel[None, :]
    if FORM.ALIGNED:  # which the compiler loses sight of in the flattened loop
        pointers = tl.multiple_of(pointers, (16, 16))
    if FORM.MIXED and FORM.WHOLE:
        a = tl.load(pointers, live[:, None], 0.0)
    elif FORM.MIXED:
        a = tl.load(pointers, live[:, None] & (channel < channels)[None, :], 0.0)
    elif FORM.WHOLE:
        a = tl.load(pointers)
    else:
        a = tl.load(pointers, (channel < channels)[None, :], 0.0)
    return a
