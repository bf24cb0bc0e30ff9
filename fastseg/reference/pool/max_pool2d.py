"""Max-pooling with byte codes, and its gradient, tap by tap."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.formulas import compute_dtype
from fastseg._core.pool2d import Pool2d, check_image, check_pooled, memory_format, pool2d
from fastseg._core.tensor_checks import FLOATS, check_dense
from fastseg._core.window import Ints
from fastseg.reference.pool.pool_codes import unpack_codes

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def taps(pool: Pool2d) -> list[tuple[int, int, int]]:
    """Returns (ki, kj, code) of every position of a window, in raster order."""
    height, width = pool.kernel_size
    return [(ki, kj, ki * width + kj) for ki in range(height) for kj in range(width)]


def tap_slice(pool: Pool2d, ki: int, kj: int, pooled_size: Sequence[int]) -> tuple:
    """Returns the index of one tap of all windows in a plane that starts with its padding."""
    (sh, sw), (dh, dw), (h, w) = pool.stride, pool.dilation, pooled_size
    top, left = ki * dh, kj * dw
    return ..., slice(top, top + sh * (h - 1) + 1, sh), slice(left, left + sw * (w - 1) + 1, sw)


def canvas_size(pool: Pool2d, size: Sequence[int], pooled_size: Sequence[int]) -> list[int]:
    """Returns the size of a plane with its padding, and as much more as the last window reaches."""
    return [
        max(n + 2 * p, s * (m - 1) + d * (k - 1) + 1)
        for n, m, k, s, p, d in zip(size, pooled_size, *pool, strict=True)
    ]


def max_pool2d(
    x: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes :func:`fastseg.max_pool2d`, which explains the arguments."""
    pool = pool2d("fastseg::max_pool2d", kernel_size, stride, padding, dilation)
    check_image("fastseg::max_pool2d", "x", x)
    torch._check(
        x.dtype in (*FLOATS, *INTEGERS),
        lambda: f"fastseg::max_pool2d: x must be of real numbers, got {x.dtype}",
    )
    size = x.shape[-2:]
    pooled = pool.pooled_size(size, ceil_mode)
    check_pooled("fastseg::max_pool2d", x, pool, pooled)

    (ph, pw), (height, width) = pool.padding, canvas_size(pool, size, pooled)
    margins = (pw, width - size[1] - pw, ph, height - size[0] - ph)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    canvas = F.pad(x, margins, value=lowest)
    inside = F.pad(torch.ones(size, dtype=torch.bool, device=x.device), margins, value=False)

    values = x.new_full((*x.shape[:-2], *pooled), lowest)
    codes = torch.zeros_like(values, dtype=torch.uint8)
    started = torch.zeros_like(values, dtype=torch.bool)
    for ki, kj, code in taps(pool):
        where = tap_slice(pool, ki, kj, pooled)
        candidate, is_inside = canvas[where], inside[where]
        # The first of equal values wins, the last NaN wins; the first tap inside always starts.
        wins = is_inside & ((candidate > values) | candidate.isnan() | ~started)
        values = torch.where(wins, candidate, values)
        codes = torch.where(wins, code, codes)
        started = started | is_inside
    layout = memory_format(x)
    return values.contiguous(memory_format=layout), codes.contiguous(memory_format=layout)


def max_pool2d_backward(
    grad: Tensor,
    codes: Tensor,
    input_size: list[int],
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    dilation: Ints,
    packed_dim: int = 0,
) -> Tensor:
    """Returns the gradient of x: each window adds its gradient at the position of its code.

    The window's arguments are those of the pooling.

    Args:
        grad: gradient of the values, (N, C, h, w) or (C, h, w).
        codes: uint8 codes of grad's shape, or packed along packed_dim.
        input_size: x's (H, W).
        kernel_size: one integer or (height, width).
        stride: one integer or (height, width); None is the kernel's size.
        padding: one integer or (height, width).
        dilation: one integer or (height, width).
        packed_dim: 0, or the dimension along which four codes share a byte.
    """
    pool = pool2d("fastseg::max_pool2d_backward", kernel_size, stride, padding, dilation)
    check_image("fastseg::max_pool2d_backward", "grad", grad)
    check_dense("fastseg::max_pool2d_backward", "codes", codes)
    codes = unpack_codes(codes, grad.shape, packed_dim)
    pooled = grad.shape[-2:]
    wide = compute_dtype(grad.dtype)
    canvas_hw = canvas_size(pool, input_size, pooled)
    canvas = grad.new_zeros((*grad.shape[:-2], *canvas_hw), dtype=wide)
    # Where windows meet in an element, the earlier window has the later tap there.
    for ki, kj, code in reversed(taps(pool)):
        canvas[tap_slice(pool, ki, kj, pooled)] += torch.where(codes == code, grad, 0).to(wide)
    (ph, pw), (height, width) = pool.padding, input_size
    out = canvas[..., ph : ph + height, pw : pw + width].to(grad.dtype)
    return out.contiguous(memory_format=memory_format(codes))
