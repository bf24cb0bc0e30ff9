"""Depthwise convolution and its gradients: atrous convolution with one group a channel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fastseg.reference.conv.atrous_conv2d import (
    atrous_conv2d,
    atrous_conv2d_input_grad,
    atrous_conv2d_weight_grad,
)


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    activation: str,
) -> Tensor:
    """Returns ``act((conv2d(x, weight) + bias) * scale + shift + residual)``.

    Each channel has its own kernel:
    ``conv2d(x, w)[c, i, j] = sum_{a, b} w[c, 0, a, b] x[c, i s - p + a d, j s - p + b d]``.
    """
    return atrous_conv2d(
        x, weight, bias, scale, shift, residual, stride, padding, dilation, x.shape[1], activation
    )


def depthwise_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Returns the gradient of x (N, C, H, W); `input_size` is (H, W)."""
    groups = grad.shape[1]
    return atrous_conv2d_input_grad(grad, weight, input_size, stride, padding, dilation, groups)


def depthwise_conv2d_weight_grad(
    x: Tensor,
    grad: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Returns the gradient of the weight, (C, 1, *kernel_size)."""
    groups = x.shape[1]
    return atrous_conv2d_weight_grad(x, grad, kernel_size, stride, padding, dilation, groups)
