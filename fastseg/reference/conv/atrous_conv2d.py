"""Atrous convolution with its epilogue, and its gradients, in plain PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.conv2d import live_range
from fastseg._core.formulas import compute_dtype, conv2d_epilogue


def atrous_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    activation: str,
) -> Tensor:
    """Returns ``act((conv2d(x, weight) + bias) * scale + shift + residual)`` in x's dtype.

    ``conv2d(x, w)[o, i, j] = sum_{c, a, b} w[o, c, a, b] x[c, i s - p + a d, j s - p + b d]``,
    where pixels outside of x are 0: taps there need not be multiplied at all. The result is rounded
    once.
    """
    wide = compute_dtype(x.dtype)
    y = F.conv2d(x.to(wide), weight.to(wide), None, stride, padding, dilation, groups)
    return conv2d_epilogue(y, bias, scale, shift, residual, activation).to(x.dtype)


def atrous_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns the gradient of x (N, Ci, H, W), a transposed convolution; `input_size` is (H, W)."""
    wide = compute_dtype(grad.dtype)
    kernel = weight.shape[2:]
    covered = [
        (n - 1) * s - 2 * p + d * (k - 1) + 1
        for n, k, s, p, d in zip(grad.shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    rest = [n - c for n, c in zip(input_size, covered, strict=True)]  # beyond all windows
    x_grad = F.conv_transpose2d(
        grad.to(wide), weight.to(wide), None, stride, padding, rest, groups, dilation
    )
    return x_grad.to(grad.dtype)


def atrous_conv2d_weight_grad(
    x: Tensor,
    grad: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """Returns the gradient of the weight (Co, Ci / groups, kh, kw), one matrix product per tap.

    ``dw[:, :, a, b] = sum_{n, i, j} grad[n, :, i, j] x[n, :, i s - p + a d, j s - p + b d]^T``,
    over the pixels (i, j) whose tap (a, b) lies inside of x.
    """
    wide = compute_dtype(x.dtype)
    x_groups = x.to(wide).unflatten(1, (groups, -1))
    grad_groups = grad.to(wide).unflatten(1, (groups, -1))
    geometry = tuple(zip(x.shape[2:], grad.shape[2:], stride, padding, dilation, strict=True))
    taps = []
    for tap in itertools.product(*map(range, kernel_size)):
        (x_rows, rows), (x_columns, columns) = (
            live_range(*g, k) for g, k in zip(geometry, tap, strict=True)
        )
        pixels, read = grad_groups[..., rows, columns], x_groups[..., x_rows, x_columns]
        taps.append(torch.einsum("ngohw,ngchw->goc", pixels, read).flatten(0, 1))
    return torch.stack(taps, -1).unflatten(-1, tuple(kernel_size)).to(x.dtype)
