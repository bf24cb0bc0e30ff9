"""Depthwise convolution and its gradients, building blocks of :func:`fastseg.atrous_conv2d`.

They are ops without gradients of their own: compiled kernels on the CPU, Triton's on NVIDIA GPUs.
"""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._core.conv2d import empty_output, in_layout_of
from fastseg._core.conv2d_checks import (
    check_conv2d,
    check_epilogue,
    check_grad,
    check_image,
    check_output_size,
)
from fastseg._core.library import define, define_triton
from fastseg._core.tensor_checks import check_alike, check_float
from fastseg._core.vmap import by_batch
from fastseg._core.window import pair


def _check_image(op, name, x):
    check_image(op, name, x)
    check_float(op, name, x)


def _check_weight(op, name, x, weight):
    torch._check(
        weight.dim() == 4 and weight.shape[0] == x.shape[1] and weight.shape[1] == 1,
        lambda: (
            f"{op}: weight must have the shape (C, 1, kh, kw) with the {x.shape[1]} channels of"
            f" {name}, got {tuple(weight.shape)}"
        ),
    )
    check_alike(op, "weight", weight, name, x)


def _check_geometry(op, name, size, kernel_size, stride, padding, dilation):
    """Returns the geometry and the output's (h, w) for an input of `size`."""
    conv = check_conv2d(op, kernel_size, stride, padding, dilation, 1)
    return conv[:3], check_output_size(op, name, size, kernel_size, conv)


def _check(x, weight, bias, scale, shift, residual, stride, padding, dilation, activation):
    op = "fastseg::depthwise_conv2d"
    _check_image(op, "x", x)
    _check_weight(op, "x", x, weight)
    geometry = stride, padding, dilation
    conv, size = _check_geometry(op, "x", x.shape[2:], weight.shape[2:], *geometry)
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    check_epilogue(op, x, (*x.shape[:2], *size), vectors, residual, activation)
    return conv, size


def _fake(x, *others):
    _, size = _check(x, *others)
    return empty_output(x, x.shape[1], size)


def _reference(*arguments):
    conv, _ = _check(*arguments)
    *tensors, _, _, _, activation = arguments
    return in_layout_of(tensors[0], reference.depthwise_conv2d(*tensors, *conv, activation))


depthwise_conv2d = define(
    "depthwise_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? scale, Tensor? shift,"
    " Tensor? residual, int[2] stride, int[2] padding, int[2] dilation, str activation) -> Tensor",
    reference=_reference,
    fake=_fake,
    vmap=by_batch(0, 5),
)


def _triton(*arguments):
    from fastseg.kernels.conv.depthwise_conv2d import depthwise_conv2d

    conv, _ = _check(*arguments)
    *tensors, _, _, _, activation = arguments
    return depthwise_conv2d(*tensors, *conv, activation)


define_triton("depthwise_conv2d", _triton)


def _check_input_grad(grad, weight, input_size, *geometry):
    op = "fastseg::depthwise_conv2d_input_grad"
    _check_image(op, "grad", grad)
    _check_weight(op, "grad", grad, weight)
    input_size = pair(op, "input_size", input_size)
    conv, size = _check_geometry(op, "input_size", input_size, weight.shape[2:], *geometry)
    check_grad(op, grad, (*grad.shape[:2], *size))
    return conv, input_size


def _fake_input_grad(grad, *others):
    _, size = _check_input_grad(grad, *others)
    return empty_output(grad, grad.shape[1], size)


def _reference_input_grad(grad, weight, *others):
    conv, size = _check_input_grad(grad, weight, *others)
    return in_layout_of(grad, reference.depthwise_conv2d_input_grad(grad, weight, size, *conv))


depthwise_conv2d_input_grad = define(
    "depthwise_conv2d_input_grad(Tensor grad, Tensor weight, SymInt[2] input_size, int[2] stride,"
    " int[2] padding, int[2] dilation) -> Tensor",
    reference=_reference_input_grad,
    fake=_fake_input_grad,
    vmap=by_batch(0),
)


def _triton_input_grad(grad, weight, *others):
    from fastseg.kernels.conv.depthwise_conv2d import depthwise_conv2d_input_grad

    conv, size = _check_input_grad(grad, weight, *others)
    return depthwise_conv2d_input_grad(grad, weight, size, *conv)


define_triton("depthwise_conv2d_input_grad", _triton_input_grad)


def _check_weight_grad(x, grad, kernel_size, *geometry):
    op = "fastseg::depthwise_conv2d_weight_grad"
    _check_image(op, "x", x)
    kernel_size = pair(op, "kernel_size", kernel_size)
    conv, size = _check_geometry(op, "x", x.shape[2:], kernel_size, *geometry)
    check_grad(op, grad, (*x.shape[:2], *size))
    check_alike(op, "grad", grad, "x", x)
    return conv, kernel_size


def _fake_weight_grad(x, *others):
    _, kernel_size = _check_weight_grad(x, *others)
    return x.new_empty((x.shape[1], 1, *kernel_size))


def _reference_weight_grad(x, grad, *others):
    conv, kernel_size = _check_weight_grad(x, grad, *others)
    return reference.depthwise_conv2d_weight_grad(x, grad, kernel_size, *conv).contiguous()


depthwise_conv2d_weight_grad = define(
    "depthwise_conv2d_weight_grad(Tensor x, Tensor grad, int[2] kernel_size, int[2] stride,"
    " int[2] padding, int[2] dilation) -> Tensor",
    reference=_reference_weight_grad,
    fake=_fake_weight_grad,
)


def _triton_weight_grad(x, grad, *others):
    from fastseg.kernels.conv.depthwise_conv2d import depthwise_conv2d_weight_grad

    conv, kernel_size = _check_weight_grad(x, grad, *others)
    return depthwise_conv2d_weight_grad(x, grad, kernel_size, *conv)


define_triton("depthwise_conv2d_weight_grad", _triton_weight_grad)
