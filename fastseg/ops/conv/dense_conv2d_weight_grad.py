"""The gradient of a dense convolution's weight, a building block of :func:`fastseg.atrous_conv2d`.

It is an op in float32 without a gradient of its own. On the CPU it is compiled; elsewhere the
reference runs.
"""

from __future__ import annotations

from fastseg import reference
from fastseg._core.conv2d import empty_weight, in_layout_of
from fastseg._core.conv2d_checks import check_weight_grad
from fastseg._core.library import define


def _check(x, grad, kernel_size, *geometry):
    op = "fastseg::dense_conv2d_weight_grad"
    return check_weight_grad(op, x, grad, kernel_size, *geometry, 1)


def _fake(x, grad, *geometry):
    _, kernel_size = _check(x, grad, *geometry)
    return empty_weight(x, grad, kernel_size, 1)


def _reference(x, grad, *geometry):
    conv, kernel_size = _check(x, grad, *geometry)
    return in_layout_of(x, reference.atrous_conv2d_weight_grad(x, grad, kernel_size, *conv))


dense_conv2d_weight_grad = define(
    "dense_conv2d_weight_grad(Tensor x, Tensor grad, int[2] kernel_size, int[2] stride,"
    " int[2] padding, int[2] dilation) -> Tensor",
    reference=_reference,
    fake=_fake,
)
