"""The Triton kernels of the exact Gaussian filter: its sums, and the gradient of the features.

:mod:`fastseg.kernels.crf.exact_gaussian_filter` says what they compute and what they cost.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from fastseg.kernels.crf.exact_gaussian_filter_operands import (
    SHIFT,
    WEIGHT_UNIT,
    exponent_of_differences,
    exponent_rows,
)

NO_CELL = tl.constexpr(0x7FFFFFFF)


class Points(NamedTuple):
    """Tensors outside a kernel, pointers inside: the sorted points of all images.

    They are those of :class:`fastseg.kernels.crf.exact_gaussian_filter_blocks.Blocks`.
    """

    order: Tensor
    features: Tensor
    lower: Tensor
    upper: Tensor
    cells: Tensor
    centers: Tensor
    keys: Tensor


class Lists(NamedTuple):
    """Tensors outside a kernel, pointers inside: the near blocks of each row of queries.

    Attributes:
        counts: (rows,) int32: number of near blocks.
        lists: (rows, blocks) int32: their numbers in the image.
    """

    counts: Tensor
    lists: Tensor


class Rows(NamedTuple):
    """Tensors outside a kernel, pointers inside: the values of the sorted points.

    Attributes:
        high: (chunks, B * P, CHANNELS), 16-bit values, or the high halves of float32.
        low: the low halves, of the same shape, or None.
        scales: (chunks, B * P / BLOCK, CHANNELS) float32, what a block's sums count, or None.
    """

    high: Tensor
    low: Tensor | None
    scales: Tensor | None


class Sizes(NamedTuple):
    """Integers that both kernels take.

    Attributes:
        first_row: number of the first block of queries, counted over (B, blocks).
        blocks: number of blocks of an image.
        points: number of points of an image, without padding.
        columns: number of values of a point of the output: channels, or dimensions of a feature.
        chunk_stride: number of values from one chunk of channels to the next.
        out_stride: number of values of the output from one chunk to the next, 0 if chunks share it.
    """

    first_row: int
    blocks: int
    points: int
    columns: int
    chunk_stride: int
    out_stride: int


@triton.jit
def filter_kernel(
    points,
    near,
    sizes,
    values,
    out,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    HALVES: tl.constexpr,
):
    """Program (r, k): the queries of block first_row + r, the k-th chunk of channels.

    out: (B, columns, points). HALVES is 0 for values of 16 bits, 1 or 2 for float32, of which that
    many halves are multiplied.
    """
    lane, channel, column = tl.arange(0, BLOCK), tl.arange(0, CHANNELS), tl.arange(0, COLUMNS)
    key_at = tl.arange(0, KEYS)[:, None]
    row = (sizes.first_row + tl.program_id(0)).to(tl.int64)
    first_block = row // sizes.blocks * sizes.blocks
    own = points.features + row * BLOCK * DIMS
    chunk = tl.program_id(1).to(tl.int64) * sizes.chunk_stride
    lists = near.lists + tl.program_id(0).to(tl.int64) * sizes.blocks
    parts: tl.constexpr = BLOCK // KEYS
    cell = NO_CELL
    query = tl.zeros((BLOCK, COLUMNS), tl.float16)
    sums = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for i in range(tl.load(near.counts + tl.program_id(0)) * parts):
        block = first_block + tl.load(lists + i // parts)
        first_key = block * BLOCK + i % parts * KEYS
        new_cell = tl.load(points.cells + block)
        if new_cell != cell:
            cell = new_cell
            center = points.centers + block * DIMS
            query = exponent_rows(own, center, BLOCK, False, D, DIMS, COLUMNS)
        key = tl.load(points.keys + first_key * COLUMNS + (key_at * COLUMNS + column[None, :]))
        exponent = tl.dot(query, tl.trans(key))
        if new_cell < 0:
            of_keys = points.features + first_key * DIMS
            exponent = exponent_of_differences(own, of_keys, BLOCK, KEYS, D, DIMS)
        weights = tl.exp2(tl.minimum(exponent, SHIFT))
        first_value = chunk + first_key * CHANNELS
        at = key_at * CHANNELS + channel[None, :]
        high = tl.load(values.high + first_value + at)
        weight = weights.to(high.dtype)
        if HALVES == 0:
            sums = tl.dot(weight, high, sums)
        else:
            part = tl.dot(weight, high)
            if HALVES == 2:
                rest = (weights - weight.to(tl.float32)).to(high.dtype)
                part = tl.dot(rest, high, part)
                part = tl.dot(weight, tl.load(values.low + first_value + at), part)
            scales = values.scales + (chunk // BLOCK + block * CHANNELS)
            sums += part * tl.load(scales + channel)[None, :]
    if HALVES == 0:
        sums *= WEIGHT_UNIT
    channel += tl.program_id(1) * CHANNELS
    exists = (row - first_block) * BLOCK + lane < sizes.points
    exists = exists[:, None] & (channel < sizes.columns)[None, :]
    to = tl.load(points.order + row * BLOCK + lane)
    out += (row // sizes.blocks * sizes.columns + channel[None, :]) * sizes.points + to[:, None]
    tl.store(out, sums.to(out.dtype.element_ty), exists)


@triton.jit
def grad_features_kernel(
    points,
    near,
    sizes,
    grads,
    values,
    out,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    DIMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``sum_j k_ij s_ij (f_j - f_i)``, ``s_ij = g_i.v_j + v_i.g_j`` over one chunk of channels.

    Programs are those of filter_kernel; grads and values: (chunks, B * P, CHANNELS); out: (chunks,
    B, columns, points), to be summed over the chunks.
    """
    lane, channel, dim = tl.arange(0, BLOCK), tl.arange(0, CHANNELS), tl.arange(0, DIMS)
    column, key_at = tl.arange(0, COLUMNS), tl.arange(0, KEYS)[:, None]
    row = (sizes.first_row + tl.program_id(0)).to(tl.int64)
    first_block = row // sizes.blocks * sizes.blocks
    own = points.features + row * BLOCK * DIMS
    grads += tl.program_id(1).to(tl.int64) * sizes.chunk_stride
    values += tl.program_id(1).to(tl.int64) * sizes.chunk_stride
    out += tl.program_id(1).to(tl.int64) * sizes.out_stride
    lists = near.lists + tl.program_id(0).to(tl.int64) * sizes.blocks
    parts: tl.constexpr = BLOCK // KEYS
    # Of the queries' own block: the sum of s f_j and f_i times that of s are not to cancel.
    corner = first_block * D + dim * sizes.blocks + row - first_block
    center = 0.5 * tl.load(points.lower + corner, dim < D, 0.0)
    center += 0.5 * tl.load(points.upper + corner, dim < D, 0.0)
    own_values = row * BLOCK * CHANNELS + (lane[:, None] * CHANNELS + channel[None, :])
    query_grad, query_value = tl.load(grads + own_values), tl.load(values + own_values)
    cell = NO_CELL
    query = tl.zeros((BLOCK, COLUMNS), tl.float16)
    moments = tl.zeros((BLOCK, DIMS), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.load(near.counts + tl.program_id(0)) * parts):
        block = first_block + tl.load(lists + i // parts)
        first_key = block * BLOCK + i % parts * KEYS
        new_cell = tl.load(points.cells + block)
        if new_cell != cell:
            cell = new_cell
            origin = points.centers + block * DIMS
            query = exponent_rows(own, origin, BLOCK, False, D, DIMS, COLUMNS)
        key = tl.load(points.keys + first_key * COLUMNS + (key_at * COLUMNS + column[None, :]))
        exponent = tl.dot(query, tl.trans(key))
        if new_cell < 0:
            keys = points.features + first_key * DIMS
            exponent = exponent_of_differences(own, keys, BLOCK, KEYS, D, DIMS)
        weights = tl.exp2(tl.minimum(exponent, SHIFT))
        first_value = first_key * CHANNELS
        at = key_at * CHANNELS + channel[None, :]
        grad, value = tl.load(grads + first_value + at), tl.load(values + first_value + at)
        s = tl.dot(query_grad, tl.trans(value), input_precision=PRECISION)
        s = tl.dot(query_value, tl.trans(grad), s, input_precision=PRECISION)
        s *= weights
        feature = tl.load(points.features + first_key * DIMS + (key_at * DIMS + dim[None, :]))
        feature -= center[None, :]
        moments = tl.dot(s, feature, moments, input_precision=PRECISION)
        total += tl.sum(s, 1)
    feature = tl.load(own + lane[:, None] * DIMS + dim[None, :]) - center[None, :]
    moments = (moments - feature * total[:, None]) * WEIGHT_UNIT
    exists = (row - first_block) * BLOCK + lane < sizes.points
    exists = exists[:, None] & (dim < sizes.columns)[None, :]
    to = tl.load(points.order + row * BLOCK + lane)
    out += (row // sizes.blocks * sizes.columns + dim[None, :]) * sizes.points + to[:, None]
    tl.store(out, moments, exists)
