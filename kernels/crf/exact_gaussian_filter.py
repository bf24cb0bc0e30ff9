"""The exact Gaussian filter and its gradient on NVIDIA GPUs.

``out_i = sum_j exp(-|f_i - f_j|^2 / 2) v_j``: attention without a softmax. A program takes a block
of 64 queries and walks the list of the blocks of keys that come near it (see
:mod:`fastseg.kernels.crf.exact_gaussian_filter_blocks`), as flash attention walks all of them
(Dao 2023, arXiv 2307.08691); weights live in registers only.

Exponents are one product of float16 each, whose rows for the keys are made once for all filters of
the same features; values of float32 and the weights on them are two halves of 16 bits (see
:mod:`fastseg.kernels.crf.exact_gaussian_filter_operands`), multiplied in three products, or in one
of the high halves where torch's settings admit TF32 for matrix products. For float16 and bfloat16
the weights, in [0, 1], are rounded to that dtype. Sums are float32 throughout.

Each filter is a launch that gathers the values, in the blocks' order and in halves, and one that
sums and scatters.

Floor: one exp2 a pair. 500 x 375 pixels have 3.5e10 pairs: at 16 a clock on each of an H100's 132
multiprocessors 9.5 ms, of which block-sparsity leaves 2.4 ms at the bandwidths 80/13, 0.83 ms at
49/5 and 0.53 ms at 67/3. Beside that a pair costs, on the matrix units, 2 * 32 operations for the
exponent at d = 5 and 2 C for the sum (three times for float32), all of float16; in bytes
(64 + 2 C) / 64, or (64 + 4 C) / 64 for float32, from L2. These figures are arithmetic: no run on a
GPU stands behind them. Issuing instructions takes longer than the exponentials, 256 cycles for 64
queries by 64 keys: the tests count the instructions of the loop, at most 400 a warp.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from fastseg import reference
from fastseg._core.float32_precision import tf32_in_products
from fastseg.kernels.common import device_of, input_precision, precision_of
from fastseg.kernels.crf import exact_gaussian_filter_blocks as sorting
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
    Rows,
    Sizes,
    filter_kernel,
    grad_features_kernel,
)
from fastseg.kernels.crf.exact_gaussian_filter_operands import rows_kernel

LOADS_AHEAD_ON_SM_90 = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7)
"""Whether Triton compiles these kernels for sm_90 in several stages; 3.6 ends with an error."""

MOST_DIMS = 32
"""Most dimensions of a feature: a tile of more would not fit registers."""


def block_forms(features: Tensor) -> list[tuple[tuple[int, ...], torch.dtype]]:
    """The shapes and dtypes of what exact_gaussian_blocks returns for these features."""
    return sorting.block_forms(features) if _runs_here(features) else []


def exact_gaussian_blocks(features: Tensor, cutoff: float) -> list[Tensor]:
    """The tensors of :class:`Blocks`, or none for features that the reference filters."""
    return list(sort_into_blocks(features, _limit(cutoff))) if _runs_here(features) else []


def exact_gaussian_filter(
    values: Tensor, features: Tensor, cutoff: float, blocks: Sequence[Tensor] | None = None
) -> Tensor:
    """See :func:`fastseg.ops.exact_gaussian_filter`; its arguments are checked."""
    if not _runs_here(features):
        return reference.exact_gaussian_filter(values, features, cutoff)
    out = values.new_empty(values.shape)
    if values.numel() > 0:
        points = _blocks(features, cutoff, blocks)
        rows = _rows(values, points, halves_of(values.dtype))
        for near in _near_blocks(points, cutoff):
            _filter(points, near, rows, out)
    return out


def exact_gaussian_filter_backward(
    grad: Tensor,
    values: Tensor,
    features: Tensor,
    cutoff: float,
    blocks: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`fastseg.reference.exact_gaussian_filter_backward`; its arguments are checked."""
    if not _runs_here(features):
        return reference.exact_gaussian_filter_backward(grad, values, features, cutoff)
    grad_values = values.new_empty(values.shape)
    if values.numel() == 0:
        return grad_values, torch.zeros_like(features)
    points = _blocks(features, cutoff, blocks)
    filtered = _rows(grad, points, halves_of(grad.dtype))
    halved = filtered.scales is not None
    grad_rows = _rows(grad, points, 0).high if halved else filtered.high
    rows = _rows(values, points, 0).high
    grad_features = features.new_empty((rows.shape[0], *features.shape))
    for near in _near_blocks(points, cutoff):
        _filter(points, near, filtered, grad_values)
        _grad_features(points, near, grad_rows, rows, grad_features)
    return grad_values, grad_features.sum(0)


class Tile(NamedTuple):
    """The numbers that a kernel is compiled with: what fits registers without spilling."""

    CHANNELS: int
    KEYS: int


def tile(dtype: torch.dtype, columns: int, channels: int, gradient: bool) -> Tile:
    """The tile for a problem.

    Args:
        dtype: the dtype of the values.
        columns: number of columns of the exponents' rows.
        channels: number of channels of the values; a program sums some, several share the rest.
        gradient: whether the tile is grad_features_kernel's, or filter_kernel's.
    """
    return Tile(
        CHANNELS=min(32 if dtype == torch.float32 else 64, padded_size(channels)),
        KEYS=BLOCK // 2 if gradient or columns > 64 else BLOCK,
    )


def options(architecture: str, columns: int, gradient: bool) -> dict[str, int]:
    """How a kernel is compiled: in how many stages loads are ahead of products, for what warps.

    Args:
        architecture: the device's, see :class:`fastseg.kernels.common.Device`.
        columns: number of columns of the exponents' rows.
        gradient: whether the kernel is grad_features_kernel, whose tiles are larger, or
            filter_kernel. Three stages have two of its tiles on their way while one is computed;
            on sm_100 they cost more instructions than the bar of 400 leaves.
    """
    stages = 2 if gradient or architecture == "sm_100" else 3
    if architecture == "sm_90" and not LOADS_AHEAD_ON_SM_90:
        stages = 1
    return {
        "num_warps": 8 if gradient and columns > 32 else 4,
        "num_stages": stages,
        "enable_fp_fusion": True,
    }


def halves_of(dtype: torch.dtype) -> int:
    """How many halves of values of that dtype are multiplied: 0 for those of 16 bits."""
    if dtype != torch.float32:
        return 0
    return 1 if tf32_in_products() else 2


class Near(NamedTuple):
    """The near blocks of some rows: blocks counted over (B, P / BLOCK), from first_row."""

    first_row: int
    counts: Tensor
    lists: Tensor


def _runs_here(features: Tensor) -> bool:
    """Whether the kernels are ahead: GPUs have few float64 units, few dimensions fit a tile."""
    return features.dtype == torch.float32 and features.shape[1] <= MOST_DIMS


def _limit(cutoff: float) -> float:
    """The squared distance at which weights fall below the cutoff."""
    return -2 * math.log(cutoff) if cutoff > 0 else math.inf


def _blocks(features: Tensor, cutoff: float, given: Sequence[Tensor] | None) -> Blocks:
    if given is None:
        return sort_into_blocks(features, _limit(cutoff))
    return Blocks(*(t.contiguous() for t in given))


def _near_blocks(blocks: Blocks, cutoff: float) -> Iterator[Near]:
    """The near blocks: the lists that are kept, or new ones of as many rows as may be at once."""
    if blocks.lists.numel() > 0:
        yield Near(0, blocks.counts.flatten(), blocks.lists.flatten(0, 1))
        return
    step = min(blocks.rows, max(1, sorting.LIST_ENTRIES // blocks.blocks))
    counts = blocks.counts.new_empty(step)
    lists = counts.new_empty((step, blocks.blocks))
    for first in range(0, blocks.rows, step):
        near = Near(first, counts[: blocks.rows - first], lists[: blocks.rows - first])
        find_near_blocks(blocks, first, _limit(cutoff), *near[1:])
        yield near


def _rows(x: Tensor, blocks: Blocks, halves: int) -> Rows:
    """(B, C, N) as rows of the sorted points."""
    _, channels, n = x.shape
    width = tile(x.dtype, blocks.keys.shape[2], channels, gradient=False).CHANNELS
    shape = (-(-channels // width), blocks.rows * BLOCK, width)
    high, low, scales = x.new_empty(shape, dtype=torch.float16 if halves else x.dtype), None, None
    if halves:
        scales = x.new_empty((shape[0], blocks.rows, width))
    if halves > 1:
        low = torch.empty_like(high)
    sizes = (blocks.blocks, n, channels, *x.stride())
    rows_kernel[(blocks.rows, shape[0])](
        x, blocks.order, high, low, scales, *sizes, BLOCK=BLOCK, CHANNELS=width, HALVES=halves
    )
    return Rows(high, low, scales)


def _arguments(blocks: Blocks, near: Near, n: int, columns: int, *strides: int) -> tuple:
    """The groups that both kernels take, for images of n points."""
    return (
        Points(*blocks[: len(Points._fields)]),
        Lists(near.counts, near.lists),
        Sizes(near.first_row, blocks.blocks, n, columns, *strides),
    )


def _options(blocks: Blocks, gradient: bool) -> dict[str, int]:
    return options(device_of(blocks.keys.device).architecture, blocks.keys.shape[2], gradient)


def _filter(blocks: Blocks, near: Near, rows: Rows, out: Tensor) -> None:
    _, channels, n = out.shape
    constants = tile(out.dtype, blocks.keys.shape[2], channels, gradient=False)
    filter_kernel[(near.counts.shape[0], rows.high.shape[0])](
        *_arguments(blocks, near, n, channels, rows.high.stride(0), 0),
        rows,
        out,
        **blocks.constants(),
        **constants._asdict(),
        HALVES=halves_of(out.dtype),
        **_options(blocks, gradient=False),
    )


def _grad_features(
    blocks: Blocks, near: Near, grad_rows: Tensor, rows: Tensor, out: Tensor
) -> None:
    _, _, dims, n = out.shape
    constants = tile(rows.dtype, blocks.keys.shape[2], rows.shape[2], gradient=True)
    grad_features_kernel[(near.counts.shape[0], rows.shape[0])](
        *_arguments(blocks, near, n, dims, rows.stride(0), out.stride(0)),
        grad_rows,
        rows,
        out,
        **blocks.constants(),
        **constants._asdict(),
        # 16-bit values make more than one TF32 term pointless.
        PRECISION=input_precision(precision_of(rows.dtype, tf32_in_products)),
        **_options(blocks, gradient=True),
    )
