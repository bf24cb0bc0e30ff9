"""Gradients of convolutions as products with columns, parts of :func:`fastseg.atrous_conv2d`.

They are ops in float32 without gradients of their own. On the CPU they are compiled; elsewhere the
references run. Padding counts as zeros: what is not finite in grad makes the gradient of a tap NaN
that reads padding there.
"""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._core.conv2d import empty_output, empty_weight, in_layout_of
from fastseg._core.conv2d_checks import (
    check_conv2d,
    check_grad,
    check_groups,
    check_image,
    check_output_size,
    check_weight_grad,
)
from fastseg._core.library import define
from fastseg._core.tensor_checks import check_alike, check_float32
from fastseg._core.window import pair


def _check_weight_grad(*arguments):
    return check_weight_grad("fastseg::im2col_conv2d_weight_grad", *arguments)


def _fake_weight_grad(x, grad, *others):
    conv, kernel_size = _check_weight_grad(x, grad, *others)
    return empty_weight(x, grad, kernel_size, conv.groups)


def _reference_weight_grad(x, grad, *others):
    conv, kernel_size = _check_weight_grad(x, grad, *others)
    return in_layout_of(x, reference.atrous_conv2d_weight_grad(x, grad, kernel_size, *conv))


im2col_conv2d_weight_grad = define(
    "im2col_conv2d_weight_grad(Tensor x, Tensor grad, int[2] kernel_size, int[2] stride,"
    " int[2] padding, int[2] dilation, int groups) -> Tensor",
    reference=_reference_weight_grad,
    fake=_fake_weight_grad,
)


def _check_input_grad(grad, weight, input_size, stride, padding, dilation, groups):
    """Checks the arguments of the input's gradient; returns the geometry and the input's size."""
    op = "fastseg::im2col_conv2d_input_grad"
    check_image(op, "grad", grad)
    check_float32(op, "grad", grad)
    check_alike(op, "weight", weight, "grad", grad)
    torch._check(
        weight.dim() == 4 and weight.shape[0] == grad.shape[1] and weight.shape[1] > 0,
        lambda: (
            f"{op}: weight must have the shape (Co, Ci / groups, kh, kw) with the {grad.shape[1]}"
            f" channels of grad, got {tuple(weight.shape)}"
        ),
    )
    input_size = pair(op, "input_size", input_size)
    conv = check_conv2d(op, weight.shape[2:], stride, padding, dilation, groups)
    check_groups(op, groups, {"grad": grad.shape[1]})
    size = check_output_size(op, "input_size", input_size, weight.shape[2:], conv)
    check_grad(op, grad, (*grad.shape[:2], *size))
    return conv, input_size


def _fake_input_grad(grad, weight, *others):
    conv, size = _check_input_grad(grad, weight, *others)
    return empty_output(grad, weight.shape[1] * conv.groups, size)


def _reference_input_grad(grad, weight, *others):
    conv, size = _check_input_grad(grad, weight, *others)
    return in_layout_of(grad, reference.atrous_conv2d_input_grad(grad, weight, size, *conv))


im2col_conv2d_input_grad = define(
    "im2col_conv2d_input_grad(Tensor grad, Tensor weight, SymInt[2] input_size, int[2] stride,"
    " int[2] padding, int[2] dilation, int groups) -> Tensor",
    reference=_reference_input_grad,
    fake=_fake_input_grad,
)
