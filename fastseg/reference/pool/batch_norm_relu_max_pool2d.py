"""Folded batch norm, ReLU and max-pooling, one after the other."""

from __future__ import annotations

from torch import Tensor

from fastseg._core.formulas import compute_dtype
from fastseg._core.window import Ints
from fastseg.reference.pool.max_pool2d import max_pool2d


def batch_norm_relu(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Returns ``relu(x * scale + shift)``, in x's dtype, of one scale and shift a channel."""
    wide = compute_dtype(x.dtype)
    per_channel = (-1, 1, 1)
    y = x.to(wide) * scale.to(wide).view(per_channel) + shift.to(wide).view(per_channel)
    return y.to(x.dtype).relu()


def batch_norm_relu_max_pool2d(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    kernel_size: Ints,
    stride: Ints | None = None,
    padding: Ints = 0,
    dilation: Ints = 1,
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor]:
    """Computes :func:`fastseg.batch_norm_relu_max_pool2d`, which explains the arguments."""
    y = batch_norm_relu(x, scale, shift)
    return max_pool2d(y, kernel_size, stride, padding, dilation, ceil_mode)
