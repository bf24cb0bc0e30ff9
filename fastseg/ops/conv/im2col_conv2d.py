"""Convolution as one matrix product on the CPU, for small maps and for contiguous ones.

It is a building block of :func:`fastseg.atrous_conv2d`, without a gradient of its own.
"""

from __future__ import annotations

from fastseg import reference
from fastseg._core.conv2d import empty_output, in_layout_of
from fastseg._core.conv2d_checks import (
    check_conv2d,
    check_epilogue,
    check_float32_image,
    check_image_and_weight,
    check_output_size,
)
from fastseg._core.library import define
from fastseg._core.vmap import by_batch

OP = "fastseg::im2col_conv2d"


def _check(x, weight, bias, scale, shift, residual, stride, padding, dilation, groups, activation):
    check_float32_image(OP, x)
    check_image_and_weight(OP, x, weight, groups)
    conv = check_conv2d(OP, weight.shape[2:], stride, padding, dilation, groups)
    size = check_output_size(OP, "x", x.shape[2:], weight.shape[2:], conv)
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    check_epilogue(OP, x, (x.shape[0], weight.shape[0], *size), vectors, residual, activation)
    return conv, size


def _fake(x, weight, *others):
    _, size = _check(x, weight, *others)
    return empty_output(x, weight.shape[0], size)


def _reference(*arguments):
    conv, _ = _check(*arguments)
    *tensors, _, _, _, _, activation = arguments
    return in_layout_of(arguments[0], reference.atrous_conv2d(*tensors, *conv, activation))


im2col_conv2d = define(
    "im2col_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift,"
    " Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, int groups, str activation)"
    " -> Tensor",
    reference=_reference,
    fake=_fake,
    vmap=by_batch(0, 5),
)
