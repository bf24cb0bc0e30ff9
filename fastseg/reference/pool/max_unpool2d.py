"""Max-unpooling by byte codes or by torch's indices, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.pool2d import memory_format, pool2d
from fastseg._core.window import Ints
from fastseg.reference.pool.max_pool2d import canvas_size, tap_slice, taps
from fastseg.reference.pool.pool_codes import check_inside, codes_to_indices, unpack_codes


def max_unpool2d(
    values: Tensor,
    indices: Tensor,
    output_size: list[int],
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
) -> Tensor:
    """Computes :func:`fastseg.max_unpool2d`; output_size is (H, W) and required here."""
    layout = memory_format(indices)
    height, width = output_size
    if indices.dtype == torch.int64:
        inside = (indices >= 0) & (indices < height * width)
        check_inside("max_unpool2d", inside, "indices hold a flat index outside the plane")
        out = values.new_zeros((*values.shape[:-2], height * width))
        out = out.scatter(-1, indices.flatten(-2), values.flatten(-2))
        return out.unflatten(-1, (height, width)).contiguous(memory_format=layout)

    pool = pool2d("fastseg::max_unpool2d", kernel_size, stride, padding)
    codes_to_indices(indices, output_size, *pool)  # this checks the codes
    pooled = values.shape[-2:]
    canvas = values.new_zeros((*values.shape[:-2], *canvas_size(pool, output_size, pooled)))
    # Where windows meet in an element the last one stays, which has the first tap there.
    for ki, kj, code in reversed(taps(pool)):
        where = tap_slice(pool, ki, kj, pooled)
        canvas[where] = torch.where(indices == code, values, canvas[where])
    ph, pw = pool.padding
    return canvas[..., ph : ph + height, pw : pw + width].contiguous(memory_format=layout)


def max_unpool2d_backward(
    grad: Tensor,
    indices: Tensor,
    pooled_size: list[int],
    kernel_size: Ints,
    stride: Ints | None,
    padding: Ints,
    dilation: Ints,
    packed_dim: int = 0,
) -> Tensor:
    """Returns the gradient of the values: each window takes the gradient at its position.

    The window's arguments are those of the pooling.

    Args:
        grad: gradient of the unpooled plane, (N, C, H, W) or (C, H, W).
        indices: uint8 codes, packed along packed_dim or not, or int64 flat indices.
        pooled_size: (h, w) of the values.
        kernel_size: one integer or (height, width).
        stride: one integer or (height, width); None is the kernel's size.
        padding: one integer or (height, width).
        dilation: one integer or (height, width).
        packed_dim: 0, or the dimension along which four codes share a byte.
    """
    layout = memory_format(indices)
    if indices.dtype == torch.uint8:
        codes = unpack_codes(indices, (*grad.shape[:-2], *pooled_size), packed_dim)
        layout = memory_format(codes)
        size = grad.shape[-2:]
        indices = codes_to_indices(codes, size, kernel_size, stride, padding, dilation)
    picked = grad.flatten(-2).gather(-1, indices.flatten(-2))
    return picked.unflatten(-1, pooled_size).contiguous(memory_format=layout)
