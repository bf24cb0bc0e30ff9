"""How the CPU computes a convolution's gradients: which kernel, and torch's where that wins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._conv2d import Conv2d
from fastseg._cpu_conv2d import (
    atrous_conv2d,
    fast,
    is_depthwise,
    is_native,
    prefers_winograd,
    winograd_weight,
)

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
    if conv.groups == 1 and conv.stride == (1, 1) and grad.dtype == torch.float32:
        # torch's own gradient of a 1x1 convolution is by another library, at half the speed.
        adjoint = weight.transpose(0, 1).flip(2, 3).contiguous()
        reach = [d * (k - 1) for d, k in zip(conv.dilation, weight.shape[2:], strict=True)]
        padding = tuple(r - p for r, p in zip(reach, conv.padding, strict=True))
        geometry = Conv2d((1, 1), padding, conv.dilation, 1)
        return atrous_conv2d(grad, adjoint, None, None, None, None, geometry, "")
    x = _empty_in_layout_of(grad, (grad.shape[0], channels, *input_size))
    return convolution_backward(grad, x, weight, conv, 0)


def atrous_conv2d_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Sequence[int], conv: Conv2d
) -> Tensor:
    """fastseg::atrous_conv2d_weight_grad on the CPU; the arguments are checked."""
    weight = _empty_in_layout_of(x, (grad.shape[1], x.shape[1] // conv.groups, *kernel_size))
    if is_depthwise(x.shape[1], weight, conv):
        return ops.depthwise_conv2d_weight_grad(x, grad, kernel_size, *conv[:3])
    dense = conv.groups == 1 and x.dtype != torch.float64 and x.shape[1] >= LEAST_CHANNELS
    if dense and not (is_native(x.dtype) and conv.dilation == (1, 1)):
        out = ops.dense_conv2d_weight_grad(x.float(), grad.float(), kernel_size, *conv[:3])
        return out.to(x.dtype)
    return convolution_backward(grad, x, weight, conv, 1)


def _empty_in_layout_of(x: Tensor, size: Sequence[int]) -> Tensor:
    """For torch's gradient, which reads no more than its shape: another layout would be copied."""
    layout = torch._prims_common.suggest_memory_format(x)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv2d, which: int
) -> Tensor:
    """Torch's gradient of x (which 0; x is any of its size) or of the weight (which 1).

    16-bit floats for which the processor has no instructions are computed in float32.
    """
    layout = torch._prims_common.suggest_memory_format(grad)
    wide = torch.float64 if grad.dtype == torch.float64 else torch.float32
    if is_native(grad.dtype):
        wide = grad.dtype
    grads = torch.ops.aten.convolution_backward(
        *(t.to(wide, memory_format=layout) for t in (grad, x, weight)), None,
        conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups,
        (which == 0, which == 1, False),
    )  # fmt: skip
    return grads[which].to(grad.dtype).contiguous(memory_format=layout)
