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
from fastseg.kernels.crf.exact_gaussian_filter_kernels import (
    Lists,
    Points,
    Sizes,
    filter_kernel,
    grad_features_kernel,
)

MOST_DIMS = 32
"""Most dimensions of a feature: a tile of more would not fit registers."""

LIST_ENTRIES = 1 << 26
"""The lists of near blocks take 256 MB at most; more queries are filtered in several launches."""

OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


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
    """The tile for a problem.

    Args:
        dtype: the dtype of the values.
        dims: number of dimensions of a padded row of features.
        channels: number of channels of the values; a program sums some, several share the rest.
        gradient: whether the tile is grad_features_kernel's, or filter_kernel's.
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
    """Whether the kernels are ahead: GPUs have few float64 units, few dimensions fit a tile."""
    return features.dtype == torch.float32 and features.shape[1] <= MOST_DIMS


def _near_blocks(blocks: Blocks, cutoff: float) -> Iterator[Near]:
    """The near blocks of as many rows at a time as LIST_ENTRIES admits."""
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


def _arguments(blocks: Blocks, near: Near, n: int, columns: int, *strides: int) -> tuple:
    """The groups that both kernels take, for images of n points."""
    return (
        Points(blocks.features, blocks.centers, blocks.order),
        Lists(near.counts, near.lists),
        Sizes(near.first_row, blocks.blocks, n, columns, *strides),
    )


def _filter(blocks: Blocks, near: Near, rows: Tensor, out: Tensor) -> None:
    _, channels, n = out.shape
    constants = tile(rows.dtype, blocks.features.shape[1], channels, gradient=False)
    filter_kernel[(near.counts.shape[0], rows.shape[0])](
        *_arguments(blocks, near, n, channels, rows.stride(0), 0),
        rows,
        out,
        **constants._asdict(),
        **OPTIONS,
    )


def _grad_features(
    blocks: Blocks, near: Near, grad_rows: Tensor, rows: Tensor, out: Tensor
) -> None:
    _, _, dims, n = out.shape
    constants = tile(rows.dtype, blocks.features.shape[1], rows.shape[2], gradient=True)
    grad_features_kernel[(near.counts.shape[0], rows.shape[0])](
        *_arguments(blocks, near, n, dims, rows.stride(0), out.stride(0)),
        grad_rows,
        rows,
        out,
        **constants._asdict(),
        **OPTIONS,
    )
