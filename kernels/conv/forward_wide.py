"""The Triton kernel of dense atrous convolution whose programs take 192 pixels by 256 outputs.

It computes what `atrous_conv2d_kernel` of :mod:`fastseg.kernels.conv.forward` does, from the same
arguments, a plan of tiles of 192 pixels among them. A step of 128 x 256 sums reads 48 KB for its
products, more than the second-level cache gives all multiprocessors in that time; here a step reads
56 KB for half as many products again. Triton's blocks are powers of two, so the sums are three
blocks of 64 x 256, which share a step's weight. They take 192 of a thread's registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastseg.kernels.conv.epilogue import Operands
from fastseg.kernels.conv.forward import finish
from fastseg.kernels.conv.loads import (
    load_pixels,
    load_weight,
    pick,
    reads_of,
    source_of,
    windows_of,
)

ROWS = tl.constexpr(64)
"""Number of pixels of a block of sums."""


NARROW = tl.constexpr(32)
"""Number of outputs whose epilogue is computed at once: beside the sums of three blocks there are
few registers for pointers."""


@triton.jit
def finish_block(
    sums,
    out,
    operands,
    shifts,
    branch,
    pixel,
    column,
    columns,
    BN: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Stores the epilogue of a block of sums (ROWS, BN), see `finish`, NARROW outputs at a time."""
    if BN > NARROW:
        HALF: tl.constexpr = BN // 2
        left, right = sums.reshape(ROWS, 2, HALF).permute(0, 2, 1).split()
        second = column + HALF
        finish_block(left, out, operands, shifts, branch, pixel, column, columns, HALF, ACTIVATION)
        finish_block(right, out, operands, shifts, branch, pixel, second, columns, HALF, ACTIVATION)
    else:
        finish(sums, out, operands, shifts, branch, pixel, column, columns, ROWS, BN, 1, ACTIVATION)


@triton.jit
def atrous_conv2d_wide_kernel(
    x,
    weights,
    weight_taps,
    out,
    workspace,
    biases,
    scales,
    shifts,
    residual,
    tables,
    image,
    columns,
    FORM: tl.constexpr,
):
    """Program (item * columns.blocks + c): 192 pixels by the c-th BN outputs of one branch.

    The arguments are those of `atrous_conv2d_kernel`, FORM.BM is 192, FORM.SUMMED is 1.
    """
    BN: tl.constexpr = FORM.BN
    ACTIVATION: tl.constexpr = FORM.ACTIVATION
    part = tl.program_id(0) % columns.blocks
    column = part * BN
    item = tables.items + tl.program_id(0) // columns.blocks * 7
    tile, branch, slot = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    pixels = tables.pixels + tile.to(tl.int64) * (3 * ROWS) + tl.arange(0, ROWS)
    windows0 = windows_of(tl.load(pixels), image)
    windows1 = windows_of(tl.load(pixels + ROWS), image)
    windows2 = windows_of(tl.load(pixels + 2 * ROWS), image)
    sums0 = tl.zeros((ROWS, BN), tl.float32)
    sums1 = tl.zeros((ROWS, BN), tl.float32)
    sums2 = tl.zeros((ROWS, BN), tl.float32)
    weight, branch_taps = pick(weights, branch), pick(weight_taps, branch)
    outputs, channels = columns.outputs, image.channels
    source = source_of(weight, branch_taps, channels, outputs, FORM)
    first, end = tl.load(item + 3), tl.load(item + 4)
    for t in tl.range(tl.load(item + 5), tl.load(item + 6), flatten=True):
        tap = tables.taps + 4 * t
        number, dy, dx = tl.load(tap), tl.load(tap + 1), tl.load(tap + 2)
        for chunk in range(first, end):
            at0, live0 = reads_of(windows0, dy, dx, image, FORM)
            a0 = load_pixels(x, at0, live0, chunk, channels, FORM)
            at1, live1 = reads_of(windows1, dy, dx, image, FORM)
            a1 = load_pixels(x, at1, live1, chunk, channels, FORM)
            at2, live2 = reads_of(windows2, dy, dx, image, FORM)
            a2 = load_pixels(x, at2, live2, chunk, channels, FORM)
            b = load_weight(source, number, column, chunk, branch_taps, outputs, channels, FORM)
            sums0 = tl.dot(a0, b, sums0, input_precision=FORM.PRECISION)
            sums1 = tl.dot(a1, b, sums1, input_precision=FORM.PRECISION)
            sums2 = tl.dot(a2, b, sums2, input_precision=FORM.PRECISION)
    if FORM.SPLIT and slot >= 0:
        row, n = tl.arange(0, ROWS)[:, None], tl.arange(0, BN)[None, :]
        at = (slot * columns.blocks + part).to(tl.int64) * (3 * ROWS * BN) + (row * BN + n)
        tl.store(workspace + at, sums0)
        tl.store(workspace + at + ROWS * BN, sums1)
        tl.store(workspace + at + 2 * ROWS * BN, sums2)
    else:
        operands = Operands(
            pick(biases, branch) if biases is not None else None,
            pick(scales, branch) if scales is not None else None,
            pick(shifts, branch) if shifts is not None else None,
            residual,
        )
        # The pixels anew, so that they take no registers in the loop.
        pixel = tl.load(pixels)
        finish_block(sums0, out, operands, shifts, branch, pixel, column, columns, BN, ACTIVATION)
        pixel = tl.load(pixels + ROWS)
        finish_block(sums1, out, operands, shifts, branch, pixel, column, columns, BN, ACTIVATION)
        pixel = tl.load(pixels + 2 * ROWS)
        finish_block(sums2, out, operands, shifts, branch, pixel, column, columns, BN, ACTIVATION)
