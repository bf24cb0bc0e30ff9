"""The Triton kernels of the exact Gaussian filter: its sums, and the gradient of the features.

:mod:`fastseg.kernels.crf.exact_gaussian_filter` says what they compute and what they cost.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


class Points(NamedTuple):
    """Tensors outside a kernel, pointers inside: the sorted points of all images.

    Attributes:
        features: (B * P, DIMS) float32.
        centers: (B * P / BLOCK, DIMS) float32.
        order: (B * P) int64: where each sorted point lies in its image.
    """

    features: Tensor
    centers: Tensor
    order: Tensor


class Lists(NamedTuple):
    """Tensors outside a kernel, pointers inside: the near blocks of each row of queries.

    Attributes:
        counts: (rows,) int32: number of near blocks.
        lists: (rows, blocks) int32: their numbers in the image.
    """

    counts: Tensor
    lists: Tensor


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
def weigh(query, query_half_square, features, center, keys, DIMS: tl.constexpr):
    """The weights of the points `keys`, (queries, keys), and the keys' features from the centre."""
    dim = tl.arange(0, DIMS)
    key = tl.load(features + keys[:, None] * DIMS + dim[None, :]) - center[None, :]
    key_half_square = 0.5 * LOG2_E * tl.sum(key * key, 1)
    product = tl.dot(query, tl.trans(key), input_precision="tf32x3")
    exponent = product - query_half_square[:, None] - key_half_square[None, :]
    return tl.exp2(tl.minimum(exponent, 0.0)), key


@triton.jit
def load_queries(points, row, BLOCK: tl.constexpr, DIMS: tl.constexpr):
    """The centre of a block, its points from there and half their squares; times log2(e)."""
    lane, dim = tl.arange(0, BLOCK), tl.arange(0, DIMS)
    center = tl.load(points.centers + row * DIMS + dim)
    query = tl.load(points.features + (row * BLOCK + lane)[:, None] * DIMS + dim[None, :])
    query -= center[None, :]
    half_square = 0.5 * LOG2_E * tl.sum(query * query, 1)
    return center, query * LOG2_E, half_square


@triton.jit
def first_key(first_block, lists, i, BLOCK: tl.constexpr, KEYS: tl.constexpr):
    """The number of the first of the i-th KEYS keys of the listed blocks of an image."""
    parts: tl.constexpr = BLOCK // KEYS
    return (first_block + tl.load(lists + i // parts)) * BLOCK + i % parts * KEYS


@triton.jit
def filter_kernel(
    points,
    near,
    sizes,
    values,
    out,
    BLOCK: tl.constexpr,
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (r, k): the queries of block first_row + r, the k-th chunk of channels.

    values: (chunks, B * P, CHANNELS); out: (B, columns, points).
    """
    lane, channel = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    row = (sizes.first_row + tl.program_id(0)).to(tl.int64)
    image = row // sizes.blocks
    values += tl.program_id(1).to(tl.int64) * sizes.chunk_stride
    lists = near.lists + tl.program_id(0).to(tl.int64) * sizes.blocks
    center, query, half_square = load_queries(points, row, BLOCK, DIMS)
    sums = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for i in range(tl.load(near.counts + tl.program_id(0)) * (BLOCK // KEYS)):
        keys = first_key(image * sizes.blocks, lists, i, BLOCK, KEYS) + tl.arange(0, KEYS)
        weights, _ = weigh(query, half_square, points.features, center, keys, DIMS)
        at = keys[:, None] * CHANNELS + channel[None, :]
        value = tl.load(values + at)
        sums = tl.dot(weights.to(value.dtype), value, sums, input_precision=PRECISION)
    channel += tl.program_id(1) * CHANNELS
    exists = ((row % sizes.blocks) * BLOCK + lane) < sizes.points
    exists = exists[:, None] & (channel < sizes.columns)[None, :]
    to = tl.load(points.order + row * BLOCK + lane)
    out += (image * sizes.columns + channel[None, :]) * sizes.points + to[:, None]
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
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``sum_j k_ij s_ij (f_j - f_i)``, ``s_ij = g_i.v_j + v_i.g_j`` over one chunk of channels.

    Programs are those of filter_kernel, and grads is laid out as values; out: (chunks, B, columns,
    points), to be summed over the chunks.
    """
    lane, channel, dim = tl.arange(0, BLOCK), tl.arange(0, CHANNELS), tl.arange(0, DIMS)
    row = (sizes.first_row + tl.program_id(0)).to(tl.int64)
    image = row // sizes.blocks
    grads += tl.program_id(1).to(tl.int64) * sizes.chunk_stride
    values += tl.program_id(1).to(tl.int64) * sizes.chunk_stride
    out += tl.program_id(1).to(tl.int64) * sizes.out_stride
    lists = near.lists + tl.program_id(0).to(tl.int64) * sizes.blocks
    center, query, half_square = load_queries(points, row, BLOCK, DIMS)
    own = (row * BLOCK + lane)[:, None] * CHANNELS + channel[None, :]
    query_grad, query_value = tl.load(grads + own), tl.load(values + own)
    moments = tl.zeros((BLOCK, DIMS), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.load(near.counts + tl.program_id(0)) * (BLOCK // KEYS)):
        keys = first_key(image * sizes.blocks, lists, i, BLOCK, KEYS) + tl.arange(0, KEYS)
        weights, key = weigh(query, half_square, points.features, center, keys, DIMS)
        at = keys[:, None] * CHANNELS + channel[None, :]
        grad, value = tl.load(grads + at), tl.load(values + at)
        s = tl.dot(query_grad, tl.trans(value), input_precision=PRECISION)
        s = tl.dot(query_value, tl.trans(grad), s, input_precision=PRECISION)
        s *= weights
        moments = tl.dot(s, key, moments, input_precision=PRECISION)
        total += tl.sum(s, 1)
    moments -= (query * LN_2) * total[:, None]
    exists = ((row % sizes.blocks) * BLOCK + lane) < sizes.points
    exists = exists[:, None] & (dim < sizes.columns)[None, :]
    to = tl.load(points.order + row * BLOCK + lane)
    out += (image * sizes.columns + dim[None, :]) * sizes.points + to[:, None]
    tl.store(out, moments, exists)
