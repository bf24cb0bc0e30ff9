"""The Triton kernels of dense atrous convolution: an implicit matrix product over live taps.

With A the pixels that a tap reads, gathered from channels_last x (N, H, W, Ci), and B the tap's
weight, read in place from a channels_last weight (Co, kh, kw, Ci):

    sums[pixel, co] = sum over live taps, ci of x[pixel + tap, ci] * weight[co, tap, ci]

A program takes one item of a plan (see :mod:`fastseg.kernels.conv.plan`): BM pixels that
share their live taps, BN output channels, a range of (tap, chunk of BK input channels). It walks
only those taps; there is no im2col in memory. B comes through a tensor descriptor (TMA), which
fills channels that do not exist with zeros; A through asynchronous copies, without a mask where
all pixels of every tile have the same live taps and BK divides Ci. Sums are float32. The program
stores the epilogue of its sums, or where several share a tile the sums themselves into its own
slot of a workspace, which `reduce_kernel` adds up in the plan's order: deterministic.

The gradient of the input at stride 1 is the same product with the weight's roles exchanged
(TRANSPOSED): B = weight[k, tap, n], read in place too.

Floor: 2 * Ci * Co FLOPs for each (pixel, live tap); bytes: x, weight and residual read and the
output written once. H100, bfloat16, at 800 TFLOP/s and 3 TB/s, in microseconds for a batch of
1 / 8 / 16: 3x3 2048 -> 256 on 33 x 33 at rate 6: 10/79/159 of FLOPs and 5/17/30 of bytes, at
rate 12: 7/59/118, at rate 18: 5/42/83; all branches of an ASPP of rates 6, 12, 18 and the 1x1:
24/191/383 and 12/28/45. Multiplying the padding too would take 13/103/206 a branch and 40/320/639
for the ASPP. These figures are arithmetic: no run on a GPU stands behind them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastseg.kernels.conv.epilogue import Operands, epilogue
from fastseg.kernels.conv.loads import (
    load_pixels,
    load_weight,
    pick,
    reads_of,
    source_of,
    windows_of,
)

PART = tl.constexpr(8192)
"""Number of sums whose epilogue is computed at once."""


@triton.jit
def accumulate(
    sums,
    x,
    weight,
    weight_taps,
    outputs,
    column,
    taps,
    walked,
    chunks,
    windows,
    image,
    FORM: tl.constexpr,
):
    """Adds taps of one branch to the sums (BM, BN).

    x: (N, height, width, channels). weight: (outputs, weight_taps, channels); if TRANSPOSED
    (channels, weight_taps, outputs). column: the first output channel. taps: rows of (number in
    the weight, dy, dx, unused). walked: the first tap and the end of the taps. chunks: of each tap
    the first chunk of BK channels and the end of the chunks.
    """
    channels = image.channels
    source = source_of(weight, weight_taps, channels, outputs, FORM)
    # Flattened, so that the next tap's copies are under way when a tap's last products are.
    for t in tl.range(walked[0], walked[1], flatten=True):
        tap, dy, dx = tl.load(taps + 4 * t), tl.load(taps + 4 * t + 1), tl.load(taps + 4 * t + 2)
        at, live = reads_of(windows, dy, dx, image, FORM)
        for chunk in range(chunks[0], chunks[1]):
            a = load_pixels(x, at, live, chunk, channels, FORM)
            b = load_weight(source, tap, column, chunk, weight_taps, outputs, channels, FORM)
            sums = tl.dot(a, b, sums, input_precision=FORM.PRECISION)
    return sums


@triton.jit
def finish(
    sums,
    out,
    operands,
    shifts,
    branch,
    pixel,
    column,
    columns,
    BM: tl.constexpr,
    BN: tl.constexpr,
    SUMMED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Stores the epilogue of whole sums (BM, BN), of one branch or of SUMMED at once.

    In parts of PART elements: the pointers of more would not fit beside the sums.
    """
    if BM * BN > PART:
        HALF: tl.constexpr = BN // 2
        left, right = sums.reshape(BM, 2, HALF).permute(0, 2, 1).split()
        second = column + HALF
        finish(
            left,
            out,
            operands,
            shifts,
            branch,
            pixel,
            column,
            columns,
            BM,
            HALF,
            SUMMED,
            ACTIVATION,
        )
        finish(
            right,
            out,
            operands,
            shifts,
            branch,
            pixel,
            second,
            columns,
            BM,
            HALF,
            SUMMED,
            ACTIVATION,
        )
    else:
        channel = (column + tl.arange(0, BN))[None, :]
        channel_exists = channel < columns.outputs
        at = pixel.to(tl.int64)[:, None] * columns.out_stride + branch * columns.outputs + channel
        for i in tl.static_range(1, SUMMED if shifts is not None else 1):
            sums += tl.load(shifts[i] + channel, channel_exists, 0.0).to(tl.float32)
        sums = epilogue(sums, operands, channel, channel_exists, at, channel_exists, ACTIVATION)
        tl.store(out + at, sums.to(out.dtype.element_ty), channel_exists)


@triton.jit
def atrous_conv2d_kernel(
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
    """Program (item * columns.blocks + c): BM pixels by the c-th BN of the outputs of one branch.

    weights, biases, scales and shifts: tuples of a pointer for each branch. weight_taps: for each
    branch the number of its taps. workspace: float32 (slots * columns.blocks, BM, BN).
    """
    BM: tl.constexpr = FORM.BM
    BN: tl.constexpr = FORM.BN
    SUMMED: tl.constexpr = FORM.SUMMED
    ACTIVATION: tl.constexpr = FORM.ACTIVATION
    part = tl.program_id(0) % columns.blocks
    column = part * BN
    item = tables.items + tl.program_id(0) // columns.blocks * (5 + 2 * SUMMED)
    tile, branch, slot = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    chunks = tl.load(item + 3), tl.load(item + 4)
    pixels = tables.pixels + tile.to(tl.int64) * BM + tl.arange(0, BM)
    windows = windows_of(tl.load(pixels), image)
    sums = tl.zeros((BM, BN), tl.float32)
    for i in tl.static_range(SUMMED):
        if SUMMED > 1:
            weight, branch_taps = weights[i], weight_taps[i]
        else:
            weight, branch_taps = pick(weights, branch), pick(weight_taps, branch)
        walked = tl.load(item + 5 + 2 * i), tl.load(item + 6 + 2 * i)
        sums = accumulate(
            sums,
            x,
            weight,
            branch_taps,
            columns.outputs,
            column,
            tables.taps,
            walked,
            chunks,
            windows,
            image,
            FORM,
        )
    if FORM.SPLIT and slot >= 0:
        row, n = tl.arange(0, BM)[:, None], tl.arange(0, BN)[None, :]
        at = (slot * columns.blocks + part).to(tl.int64) * BM * BN
        tl.store(workspace + (at + (row * BN + n)), sums)
    else:
        operands = Operands(
            pick(biases, branch) if biases is not None else None,
            pick(scales, branch) if scales is not None else None,
            pick(shifts, branch) if shifts is not None else None,
            residual,
        )
        pixel = tl.load(pixels)  # anew, so that it takes no registers in the loop
        finish(
            sums, out, operands, shifts, branch, pixel, column, columns, BM, BN, SUMMED, ACTIVATION
        )


@triton.jit
def reduce_kernel(
    workspace,
    out,
    biases,
    scales,
    shifts,
    residual,
    reductions,
    pixels,
    columns,
    BM: tl.constexpr,
    BN: tl.constexpr,
    ROWS: tl.constexpr,
    SUMMED: tl.constexpr,
    ACTIVATION: tl.constexpr,
):
    """Program (split tile * columns.blocks + c, r): adds up ROWS rows of its slots, in their order.

    reductions and pixels are parts of a plan; the others are those of atrous_conv2d_kernel.
    """
    entry = reductions + tl.program_id(0) // columns.blocks * 4
    part = tl.program_id(0) % columns.blocks
    column = part * BN
    tile, branch = tl.load(entry), tl.load(entry + 1)
    first, slots = tl.load(entry + 2), tl.load(entry + 3)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    at = (first.to(tl.int64) * columns.blocks + part) * BM * BN
    at += row[:, None] * BN + tl.arange(0, BN)[None, :]
    sums = tl.zeros((ROWS, BN), tl.float32)
    for _ in range(slots):
        sums += tl.load(workspace + at)
        at += columns.blocks * BM * BN
    pixel = tl.load(pixels + tile.to(tl.int64) * BM + row)
    operands = Operands(
        pick(biases, branch) if biases is not None else None,
        pick(scales, branch) if scales is not None else None,
        pick(shifts, branch) if shifts is not None else None,
        residual,
    )
    finish(
        sums, out, operands, shifts, branch, pixel, column, columns, ROWS, BN, SUMMED, ACTIVATION
    )
