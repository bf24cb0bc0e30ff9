"""Convolution as one matrix product on the CPU: atrous_conv2d where maps are small.

A building block without a gradient of its own: :mod:`fastseg.ops.atrous_conv2d` has it.
"""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._conv2d import check_conv2d, check_epilogue, empty_output, in_layout_of, pair
from fastseg.ops._library import define

OP = "fastseg::im2col_conv2d"


def _check(
    x, weight, out_channels, kernel_size, bias, scale, shift, residual, stride, padding, dilation,
    activation,
):  # fmt: skip
    torch._check(
        x.dim() == 4, lambda: f"{OP}: x must have the shape (N, C, H, W), got {tuple(x.shape)}"
    )
    torch._check(x.dtype == torch.float32, lambda: f"{OP}: x must be float32, got {x.dtype}")
    kernel = pair(OP, "kernel_size", kernel_size)
    conv = check_conv2d(OP, kernel, stride, padding, dilation, 1)
    size = conv.output_size(x.shape[2:], kernel)
    torch._check(
        size[0] > 0 and size[1] > 0,
        lambda: (
            f"{OP}: x of {x.shape[2]} x {x.shape[3]} is too small for a kernel of {kernel},"
            f" padding {conv.padding} and dilation {conv.dilation}"
        ),
    )
    panels = -(-out_channels // reference.IM2COL_PANEL)
    expected = (panels, kernel[0] * kernel[1] * x.shape[1], reference.IM2COL_PANEL)
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
)
