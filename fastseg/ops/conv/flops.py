"""Operations that torch.utils.flop_counter.FlopCounterMode counts for the ops.

The formulas are torch's own: a convolution has the operations of all its taps, however few its
kernel computes, or on request those of its live taps (:mod:`fastseg.ops.conv.live_taps`). Ops whose
work depends on a tensor's values, such as lattices, are not counted: torch counts matrix products
and convolutions alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.flop_counter import (
    bmm_flop,
    conv_backward_flop,
    conv_flop_count,
    register_flop_formula,
)

from fastseg.ops.conv.live_taps import counted_share

ops = torch.ops.fastseg

Shape = Sequence[int]


@register_flop_formula([ops.atrous_conv2d, ops.depthwise_conv2d, ops.im2col_conv2d])
def _convolution(x: Shape, weight: Shape, *others, out_shape: Shape) -> int:
    geometry = others[4:7]
    operations = conv_flop_count(x, weight, out_shape)
    return counted_share(operations, x[2:], out_shape[2:], weight[2:], *geometry)


def _same(x: Shape, weight: Shape, rate: int) -> int:
    """Counts a convolution of stride 1 whose output has the size of x."""
    out = (x[0], weight[0], *x[2:])
    operations = conv_flop_count(x, weight, out)
    padding = [rate * (k // 2) for k in weight[2:]]
    return counted_share(operations, x[2:], x[2:], weight[2:], (1, 1), padding, (rate, rate))


@register_flop_formula(ops.winograd_conv2d)
def _winograd(x: Shape, packed: Shape, channels: int, *others, out_shape: Shape) -> int:
    (rate, _) = others[4]
    return _same(x, (channels, x[1], 3, 3), rate)


@register_flop_formula(ops.winograd_branches)
def _branches(x: Shape, packed: Sequence[Shape], channels: Shape, *others, out_shape: Shape) -> int:
    return sum(_same(x, (c, x[1], 3, 3), d) for c, d in zip(channels, others[2], strict=True))


@register_flop_formula(ops.aspp)
def _aspp(x: Shape, weights: Sequence[Shape], *others, out_shape: Shape) -> int:
    dilations, project = others[2:4]
    total = sum(_same(x, w, d) for w, d in zip(weights, dilations, strict=True))
    return total if project is None else total + conv_flop_count(x, project, out_shape)


@register_flop_formula(
    [
        ops.atrous_conv2d_input_grad,
        ops.depthwise_conv2d_input_grad,
        ops.im2col_conv2d_input_grad,
    ]
)
def _input_grad(grad: Shape, weight: Shape, size: Shape, *others, out_shape: Shape) -> int:
    operations = _gradients(grad, out_shape, weight, (True, False, False))
    return counted_share(operations, size, grad[2:], weight[2:], *others[:3])


@register_flop_formula(
    [
        ops.atrous_conv2d_weight_grad,
        ops.depthwise_conv2d_weight_grad,
        ops.dense_conv2d_weight_grad,
        ops.im2col_conv2d_weight_grad,
    ]
)
def _weight_grad(x: Shape, grad: Shape, kernel_size: Shape, *others, out_shape: Shape) -> int:
    operations = _gradients(grad, x, out_shape, (False, True, False))
    return counted_share(operations, x[2:], grad[2:], kernel_size, *others[:3])


def _gradients(grad: Shape, x: Shape, weight: Shape, which: tuple[bool, bool, bool]) -> int:
    geometry = None, None, None, None, False, None, None  # the geometry does not matter
    return conv_backward_flop(grad, x, weight, *geometry, which, out_val=(x, weight, None))


@register_flop_formula(ops.exact_gaussian_filter)
def _exact(values: Shape, *_, out_shape: Shape) -> int:
    """Counts the product of the values with the kernel's matrix."""
    batch, channels, points = values
    return bmm_flop((batch, channels, points), (batch, points, points))


@register_flop_formula(ops.exact_gaussian_filter_backward)
def _exact_backward(grad: Shape, *_, out_shape) -> int:
    """Counts the same product for the gradient, and two of matrices of all pairs."""
    return 3 * _exact(grad, out_val=grad)
