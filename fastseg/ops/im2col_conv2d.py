"""Convolution as one matrix product on the CPU: atrous_conv2d where maps are small.

A building block without a gradient of its own: :mod:`fastseg.ops.atrous_conv2d` has it.
"""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._conv2d import (
    check_conv2d,
    check_epilogue,
    check_float32_image,
    check_output_size,
    empty_output,
    in_layout_of,
    pair,
)
from fastseg.ops._library import define
from fastseg.ops._vmap import by_batch

OP = "fastseg::im2col_conv2d"


def _check(
    x, weight, out_channels, kernel_size, bias, scale, shift, residual, stride, padding, dilation,
    activation,
):  # fmt: skip
    check_float32_image(OP, x)
    kernel = pair(OP, "kernel_size", kernel_size)
    conv = check_conv2d(OP, kernel, stride, padding, dilation, 1)
    size = check_output_size(OP, "x", x.shape[2:], kernel, conv)
    panels = -(-out_channels // reference.PANEL)
    expected = (panels, kernel[0] * kernel[1] * x.shape[1], reference.PANEL)
    torch._check(
        weight.dim() == 3 and all(a == b for a, b in zip(weight.shape, expected, strict=True)),
        lambda: (
            f"{OP}: weight must be packed for these channels and this kernel_size, {expected},"
            f" got {tuple(weight.shape)}"
        ),
    )
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    check_epilogue(OP, x, (x.shape[0], out_channels, *size), vectors, residual, activation)
    return conv, kernel, size


def _fake(x, weight, out_channels, *others):
    _, _, size = _check(x, weight, out_channels, *others)
    return empty_output(x, out_channels, size)


def _reference(x, weight, out_channels, *others):
    conv, kernel, _ = _check(x, weight, out_channels, *others)
    _, *epilogue, _, _, _, activation = others
    y = reference.im2col_conv2d(x, weight, out_channels, kernel, *conv[:3])
    return in_layout_of(x, reference.conv2d_epilogue(y, *epilogue, activation))


define(
    "im2col_conv2d(Tensor x, Tensor weight, int out_channels, int[2] kernel_size, Tensor? bias,"
    " Tensor? scale, Tensor? shift, Tensor? residual, int[2] stride, int[2] padding,"
    " int[2] dilation, str activation) -> Tensor",
    reference=_reference,
    fake=_fake,
    vmap=by_batch(0, 7),
)
