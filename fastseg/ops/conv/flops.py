"""Operations that torch.utils.flop_counter.FlopCounterMode counts for the ops.

The formulas are torch's own: a convolution has the operations of all its taps, however few its
kernel computes. Ops whose work depends on a tensor's values, such as lattices, are not counted:
torch counts matrix products and convolutions alone.
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

ops = torch.ops.fastseg

Shape = Sequence[int]


@register_flop_formula([ops.atrous_conv2d, ops.depthwise_conv2d, ops.im2col_conv2d])
def _convolution(x: Shape, weight: Shape, *_, out_shape: Shape) -> int:
    return conv_flop_count(x, weight, out_shape)


@register_flop_formula(ops.winograd_conv2d)
def _winograd(x: Shape, packed: Shape, channels: int, *_, out_shape: Shape) -> int:
    return conv_flop_count(x, (channels, x[1], 3, 3), out_shape)


@register_flop_formula(ops.winograd_branches)
def _branches(x: Shape, packed: Sequence[Shape], channels: Shape, *_, out_shape: Shape) -> int:
    return _winograd(x, packed, sum(channels), out_val=out_shape)


@register_flop_formula(ops.aspp)
def _aspp(x: Shape, weights: Sequence[Shape], *others, out_shape: Shape) -> int:
    project = others[3]
    total = sum(conv_flop_count(x, w, out_shape) for w in weights)
    return total if project is None else total + conv_flop_count(x, project, out_shape)


@register_flop_formula([ops.atrous_conv2d_input_grad, ops.depthwise_conv2d_input_grad])
def _input_grad(grad: Shape, weight: Shape, *_, out_shape: Shape) -> int:
    return _gradients(grad, out_shape, weight, (True, False, False))


@register_flop_formula(
    [
        ops.atrous_conv2d_weight_grad,
        ops.depthwise_conv2d_weight_grad,
        ops.dense_conv2d_weight_grad,
    ]
)
def _weight_grad(x: Shape, grad: Shape, *_, out_shape: Shape) -> int:
    return _gradients(grad, x, out_shape, (False, True, False))


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
