"""How the CPU computes a convolution's gradients: which kernel, and torch's where that wins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._conv2d import Conv2d
from fastseg._cpu_conv2d import fast, is_depthwise, prefers_winograd, winograd_weight

ops = torch.ops.fastseg

LEAST_CHANNELS = 16
"""Of x, from which on our kernel of the weight's gradient is the faster one: it takes 16 at a time.
With 3 it takes 4 times as long as torch's, from 64 on it is 1.1 to 5 times as fast."""


def atrous_conv2d_input_grad(
    grad: Tensor, weight: Tensor, input_size: Sequence[int], conv: Conv2d
) -> Tensor:
    """fastseg::atrous_conv2d_input_grad on the CPU; the arguments are checked."""
    channels = weight.shape[1] * conv.groups
    if is_depthwise(channels, weight, conv):
        return ops.depthwise_conv2d_input_grad(grad, weight, input_size, *conv[:3])
    if prefers_winograd(grad, weight.transpose(0, 1), conv):
        packed = winograd_weight(weight, grad.shape[2:], conv.dilation, adjoint=True)
        epilogue = (None, None, None, None, conv.dilation, fast(), "")
        out = ops.winograd_conv2d(grad.float(), packed, channels, *epilogue)
        return out.to(grad.dtype)
    x = grad.new_empty((grad.shape[0], channels, *input_size))
    return convolution_backward(grad, x, weight, conv, 0)


def atrous_conv2d_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Sequence[int], conv: Conv2d
) -> Tensor:
    """fastseg::atrous_conv2d_weight_grad on the CPU; the arguments are checked."""
    weight = grad.new_empty((grad.shape[1], x.shape[1] // conv.groups, *kernel_size))
    if is_depthwise(x.shape[1], weight, conv):
        return ops.depthwise_conv2d_weight_grad(x, grad, kernel_size, *conv[:3])
    if conv.groups == 1 and x.dtype != torch.float64 and x.shape[1] >= LEAST_CHANNELS:
        out = ops.dense_conv2d_weight_grad(x.float(), grad.float(), kernel_size, *conv[:3])
        return out.to(x.dtype)
    return convolution_backward(grad, x, weight, conv, 1)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv2d, which: int
) -> Tensor:
    """Torch's gradient of x (which 0; x is any of its size) or of the weight (which 1).

    16-bit floats are computed in float32: torch's own are slow without instructions for them.
    """
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    layout = torch._prims_common.suggest_memory_format(grad)
    grads = torch.ops.aten.convolution_backward(
        *(t.to(wide, memory_format=layout) for t in (grad, x, weight)), None,
        conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups,
        (which == 0, which == 1, False),
    )  # fmt: skip
    return grads[which].to(grad.dtype).contiguous(memory_format=layout)
