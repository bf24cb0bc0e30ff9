"""The gradient of a dense convolution's weight, a building block of :func:`fastseg.atrous_conv2d`.

It is an op in float32 without a gradient of its own. On the CPU it is compiled; elsewhere the
reference runs.
"""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._core.conv2d import empty_weight, in_layout_of
from fastseg._core.conv2d_checks import check_conv2d, check_output_size
from fastseg._core.library import define
from fastseg._core.tensor_checks import check_alike, check_float32
from fastseg._core.window import pair


def _check(x, grad, kernel_size, stride, padding, dilation):
    """Checks the op's arguments; returns the geometry and the kernel's size."""
    op = "fastseg::dense_conv2d_weight_grad"
    for name, t in (("x", x), ("grad", grad)):
        torch._check(
            t.dim() == 4,
            lambda n=name, t=t: f"{op}: {n} must have the shape (N, C, H, W), got {tuple(t.shape)}",
        )
        torch._check(
            t.shape[1] > 0 and t.shape[2] > 0 and t.shape[3] > 0,
            lambda n=name, t=t: (
                f"{op}: {n} must not be empty but for the batch, got shape {tuple(t.shape)}"
            ),
        )
    check_float32(op, "x", x)
    check_alike(op, "grad", grad, "x", x)
    kernel_size = pair(op, "kernel_size", kernel_size)
    torch._check(
        min(kernel_size) > 0,
        lambda: f"{op}: weight must have an odd kernel height and width, got {kernel_size}",
    )
    conv = check_conv2d(op, kernel_size, stride, padding, dilation, 1)
    size = check_output_size(op, "x", x.shape[2:], kernel_size, conv)
    expected = (x.shape[0], grad.shape[1], *size)
    torch._check(
        all(a == b for a, b in zip(grad.shape, expected, strict=True)),
        lambda: f"{op}: grad must have the output's shape {expected}, got {tuple(grad.shape)}",
    )
    return conv, kernel_size


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
