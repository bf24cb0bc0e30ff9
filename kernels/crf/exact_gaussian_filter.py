"""The exact Gaussian filter and its gradient on NVIDIA GPUs.

``out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j``: attention without a softmax. A program takes a block
of 64 queries and walks the list of the blocks of keys that come near it (see
:mod:`fastseg.kernels.crf.exact_gaussian_filter_blocks`), as flash attention walks all of them
(Dao 2023, arXiv 2307.08691); weights live in registers only.

Exponents: ``f_i.f_j - |f_i|^2 / 2 - |f_j|^2 / 2`` on the matrix units, of features taken from the
centre of the queries' block. |f|^2 is in the thousands for colours over a bandwidth of 3, where
even float32 would lose the digits that matter, and a few units after centring; the product takes
three TF32 terms ("tf32x3"), which keep float32's accuracy.

Values: for float16 and bfloat16 the weights, in [0, 1], are rounded to that dtype; for float32 the
product takes three TF32 terms, or one where torch's settings admit it for matrix products.
Sums are float32 throughout.

Floor: one exp2 a pair. 500 x 375 pixels have 3.5e10 pairs: at 16 a clock on each of an H100's 132
multiprocessors 9.5 ms, of which block-sparsity leaves 2.4 ms at the bandwidths 80/13, 0.83 ms at
49/5 and 0.53 ms at 67/3. Beside that a pair costs, on the matrix units, 3 * 2 * 16 TF32 operations
for the exponent and 2 C in the values' dtype (three times in TF32 for float32); in bytes 4 (16 + C)
for each key of a block, from L2, shared by 64 queries. These figures are arithmetic: no run on a
GPU stands behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from fastseg import reference
from fastseg._core.float32_precision import tf32_in_products
from fastseg.kernels.common import input_precision, precision_of
from fastseg.kernels.crf.exact_gaussian_filter_blocks import (
    BLOCK,
    Blocks,
    find_near_blocks,
    padded_size,
    sort_into_blocks,
)

MOST_DIMS = 32

LIST_ENTRIES = 1 << 26
"""The lists of near blocks take 256 MB at most; more queries are filtered in several launches."""

OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


@triton.jit
def weigh(query, query_half_square, features, center, keys, DIMS: tl.constexpr):
    """The weights of the points `keys`, (queries, keys), and the keys' features from the centre."""
    dim = tl.arange(0, DIMS)
    key = tl.load(features + keys[:, None] * DIMS + dim[None, :]) - center[None, :]
    key_half_square = 0.5 * 1.4426950408889634 * tl.sum(key * key, 1)
    product = tl.dot(query, tl.trans(key), input_precision="tf32x3")
    exponent = product - query_half_square[:, None] - key_half_square[None, :]
    return tl.exp2(tl.minimum(exponent, 0.0)), key


@triton.jit
def load_queries(features, centers, row, BLOCK: tl.constexpr, DIMS: tl.constexpr):
    """The centre of a block, its points from there and half their squares; times log2(e)."""
    lane, dim = tl.arange(0, BLOCK), tl.arange(0, DIMS)
    center = tl.load(centers + row * DIMS + dim)
    query = tl.load(features + (row * BLOCK + lane)[:, None] * DIMS + dim[None, :])
    query -= center[None, :]
    half_square = 0.5 * 1.4426950408889634 * tl.sum(query * query, 1)
    return center, query * 1.4426950408889634, half_square


@triton.jit
def first_key(image, blocks, lists, i, BLOCK: tl.constexpr, KEYS: tl.constexpr):
    """Where the i-th KEYS keys of the listed blocks begin."""
    parts: tl.constexpr = BLOCK // KEYS
    return (image * blocks + tl.load(lists + i // parts)) * BLOCK + i % parts * KEYS


@triton.jit
def filter_kernel(
    features,
    centers,
    values,
    order,
    counts,
    lists,
    out,
    first_row,
    blocks,
    points,
    channels,
    chunk_stride,
    BLOCK: tl.constexpr,
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (r, k): the queries of block first_row + r, the k-th chunk of channels.

    values: (chunks, B * P, CHANNELS); order: (B * P); out: (B, channels, points).
    """
    lane, channel = tl.arange(0, BLOCK), tl.arange(0, CHANNELS)
    row = (first_row + tl.program_id(0)).to(tl.int64)
    image = row // blocks
    values += tl.program_id(1).to(tl.int64) * chunk_stride
    lists += tl.program_id(0).to(tl.int64) * blocks
    center, query, half_square = load_queries(features, centers, row, BLOCK, DIMS)
    sums = tl.zeros((BLOCK, CHANNELS), tl.float32)
    for i in range(tl.load(counts + tl.program_id(0)) * (BLOCK // KEYS)):
        keys = first_key(image, blocks, lists, i, BLOCK, KEYS) + tl.arange(0, KEYS)
        weights, _ = weigh(query, half_square, features, center, keys, DIMS)
        at = keys[:, None] * CHANNELS + channel[None, :]
        value = tl.load(values + at)
        sums = tl.dot(weights.to(value.dtype), value, sums, input_precision=PRECISION)
    channel += tl.program_id(1) * CHANNELS
    exists = (((row % blocks) * BLOCK + lane) < points)[:, None] & (channel < channels)[None, :]
    to = tl.load(order + row * BLOCK + lane)
    out += (image * channels + channel[None, :]) * points + to[:, None]
    tl.store(out, sums.to(out.dtype.element_ty), exists)


@triton.jit
def grad_features_kernel(
    features,
    centers,
    grads,
    values,
    order,
    counts,
    lists,
    out,
    first_row,
    blocks,
    points,
    dims,
    chunk_stride,
    out_stride,
    BLOCK: tl.constexpr,
    DIMS: tl.constexpr,
    CHANNELS: tl.constexpr,
    KEYS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``sum_j k_ij s_ij (f_j - f_i)``, ``s_ij = g_i.v_j + v_i.g_j`` over one chunk of channels.

    Programs and layouts as in filter_kernel; out: (chunks, B, dims, points), to be summed.
    """
    lane, channel, dim = tl.arange(0, BLOCK), tl.arange(0, CHANNELS), tl.arange(0, DIMS)
    row = (first_row + tl.program_id(0)).to(tl.int64)
    image = row // blocks
    grads += tl.program_id(1).to(tl.int64) * chunk_stride
    values += tl.program_id(1).to(tl.int64) * chunk_stride
    out += tl.program_id(1).to(tl.int64) * out_stride
    lists += tl.program_id(0).to(tl.int64) * blocks
    center, query, half_square = load_queries(features, centers, row, BLOCK, DIMS)
    own = (row * BLOCK + lane)[:, None] * CHANNELS + channel[None, :]
    query_grad, query_value = tl.load(grads + own), tl.load(values + own)
    moments = tl.zeros((BLOCK, DIMS), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(tl.load(counts + tl.program_id(0)) * (BLOCK // KEYS)):
        keys = first_key(image, blocks, lists, i, BLOCK, KEYS) + tl.arange(0, KEYS)
        weights, key = weigh(query, half_square, features, center, keys, DIMS)
        at = keys[:, None] * CHANNELS + channel[None, :]
        grad, value = tl.load(grads + at), tl.load(values + at)
        s = tl.dot(query_grad, tl.trans(value), input_precision=PRECISION)
        s = tl.dot(query_value, tl.trans(grad), s, input_precision=PRECISION)
        s *= weights
        moments = tl.dot(s, key, moments, input_precision=PRECISION)
        total += tl.sum(s, 1)
    moments -= (query * 0.6931471805599453) * total[:, None]
    exists = (((row % blocks) * BLOCK + lane) < points)[:, None] & (dim < dims)[None, :]
    to = tl.load(order + row * BLOCK + lane)
    out += (image * dims + dim[None, :]) * points + to[:, None]
    tl.store(out, moments, exists)


def exact_gaussian_filter(values: Tensor, features: Tensor, cutoff: float) -> Tensor:
    """See :func:`fastseg.ops.exact_gaussian_filter`; its arguments are checked."""
    if not _runs_here(features):
        return reference.exact_gaussian_filter(values, features, cutoff)
    out = values.new_empty(values.shape)
    if values.numel() > 0:
        blocks = sort_into_blocks(features)
        rows = _rows(values, blocks)
        for near in _near_blocks(blocks, cutoff):
            _filter(blocks, near, rows, out)
    return out


def exact_gaussian_filter_backward(
    grad: Tensor, values: Tensor, features: Tensor, cutoff: float
) -> tuple[Tensor, Tensor]:
    """See :func:`fastseg.reference.exact_gaussian_filter_backward`; its arguments are checked."""
    if not _runs_here(features):
        return reference.exact_gaussian_filter_backward(grad, values, features, cutoff)
    grad_values = values.new_empty(values.shape)
    if values.numel() == 0:
        return grad_values, torch.zeros_like(features)
    blocks = sort_into_blocks(features)
    grad_rows, rows = _rows(grad, blocks), _rows(values, blocks)
    grad_features = features.new_empty((rows.shape[0], *features.shape))
    for near in _near_blocks(blocks, cutoff):
        _filter(blocks, near, grad_rows, grad_values)
        _grad_features(blocks, near, grad_rows, rows, grad_features)
    return grad_values, grad_features.sum(0)


class Tile(NamedTuple):
    """The constants that a kernel is compiled with: what fits registers without spilling."""

    BLOCK: int
    DIMS: int
    CHANNELS: int
    KEYS: int
    PRECISION: str


def tile(dtype: torch.dtype, dims: int, channels: int, gradient: bool) -> Tile:
    """For values of a dtype.

    Args:
        dtype: the values'.
        dims: of a padded row of features.
        channels: all of them; a program sums some, several share the rest.
        gradient: grad_features_kernel's, or filter_kernel's.
    """
    return Tile(
        BLOCK=BLOCK,
        DIMS=dims,
        CHANNELS=min(32 if dtype == torch.float32 else 64, padded_size(channels)),
        KEYS=BLOCK // 2 if gradient or dims > 16 else BLOCK,
        # 16-bit values make more than one TF32 term pointless.
        PRECISION=input_precision(precision_of(dtype, tf32_in_products)),
    )


class Near(NamedTuple):
    """The near blocks of some rows: blocks counted over (B, P / BLOCK), from first_row."""

    first_row: int
    counts: Tensor
    lists: Tensor


def _runs_here(features: Tensor) -> bool:
    """GPUs have few float64 units; and of many dimensions a tile does not fit."""
    return features.dtype == torch.float32 and features.shape[1] <= MOST_DIMS


def _near_blocks(blocks: Blocks, cutoff: float) -> Iterator[Near]:
    """As many rows at a time as LIST_ENTRIES admits."""
    limit = -2 * math.log(cutoff) if cutoff > 0 else math.inf
    rows = blocks.centers.shape[0]
    step = min(rows, max(1, LIST_ENTRIES // blocks.blocks))
    counts = torch.empty(step, dtype=torch.int32, device=blocks.centers.device)
    lists = counts.new_empty((step, blocks.blocks))
    for first in range(0, rows, step):
        near = Near(first, counts[: rows - first], lists[: rows - first])
        find_near_blocks(blocks, *near[:1], limit, *near[1:])
        yield near


def _rows(x: Tensor, blocks: Blocks) -> Tensor:
    """(B, C, N) to rows of the sorted points, (chunks, B * P, channels): padding is 0."""
    batch, channels, n = x.shape
    size = tile(x.dtype, blocks.features.shape[1], channels, gradient=False).CHANNELS
    order = blocks.order[:, None, :n].expand(batch, channels, n)
    missing = blocks.order.shape[1] - n
    x = F.pad(x.gather(2, order), (0, missing, 0, -channels % size))
    return x.unflatten(1, (-1, size)).permute(1, 0, 3, 2).flatten(1, 2).contiguous()


def _filter(blocks: Blocks, near: Near, rows: Tensor, out: Tensor) -> None:
    constants = tile(rows.dtype, blocks.features.shape[1], out.shape[1], gradient=False)
    filter_kernel[(near.counts.shape[0], rows.shape[0])](
        blocks.features,
        blocks.centers,
        rows,
        blocks.order,
        near.counts,
        near.lists,
        out,
        near.first_row,
        blocks.blocks,
        out.shape[2],
        out.shape[1],
        rows.stride(0),
        **constants._asdict(),
        **OPTIONS,
    )


def _grad_features(
    blocks: Blocks, near: Near, grad_rows: Tensor, rows: Tensor, out: Tensor
) -> None:
    constants = tile(rows.dtype, blocks.features.shape[1], rows.shape[2], gradient=True)
    grad_features_kernel[(near.counts.shape[0], rows.shape[0])](
        blocks.features,
        blocks.centers,
        grad_rows,
        rows,
        blocks.order,
        near.counts,
        near.lists,
        out,
        near.first_row,
        blocks.blocks,
        out.shape[3],
        out.shape[2],
        rows.stride(0),
        out.stride(0),
        **constants._asdict(),
        **OPTIONS,
    )
