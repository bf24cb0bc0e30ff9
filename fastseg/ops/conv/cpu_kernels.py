"""Our compiled convolution kernels on the CPU, with the arguments of fastseg::atrous_conv2d."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.conv2d import Conv2d
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.library import cpu_kernel
from fastseg._core.winograd import winograd_axis
from fastseg.ops.conv import depthwise_conv2d as depthwise
from fastseg.ops.conv import im2col_conv2d as im2col
from fastseg.ops.conv import winograd_conv2d as winograd
from fastseg.ops.conv.cpu_costs import DEPTHWISE_PIXELS
from fastseg.ops.conv.image_layout import in_layout, is_channels_last
from fastseg.ops.conv.prepared_weights import prepared

run_depthwise = cpu_kernel(depthwise.depthwise_conv2d)
run_depthwise_input_grad = cpu_kernel(depthwise.depthwise_conv2d_input_grad)
run_depthwise_weight_grad = cpu_kernel(depthwise.depthwise_conv2d_weight_grad)
run_im2col = cpu_kernel(im2col.im2col_conv2d)
run_winograd = cpu_kernel(winograd.winograd_conv2d)
run_winograd_weight = cpu_kernel(winograd.winograd_conv2d_weight)


def winograd_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Convolves float32 x in Winograd's pieces."""
    fast = reduced_on_cpu()
    packed = winograd_weight(weight, x.shape[2:], conv.dilation, fast)
    return run_winograd(
        x, packed, weight.shape[0], bias, scale, shift, residual, conv.dilation, fast, activation
    )


def winograd_weight(
    weight: Tensor,
    size: Sequence[int],
    dilation: Sequence[int],
    fast: bool,
    adjoint: bool = False,
) -> Tensor:
    """Returns the weight in Winograd's form for maps of one size; it is kept with the weight.

    Args:
        weight: (Co, Ci, 3, 3), of any floating-point dtype.
        size: (H, W) of the maps.
        dilation: (vertical, horizontal).
        fast: whether F(4, 3) is admitted.
        adjoint: whether the convolution computes the gradient of the input.
    """
    axes = [winograd_axis(n, d, fast) for n, d in zip(size, dilation, strict=True)]
    form = ("winograd", tuple(axes[0].rows), tuple(axes[1].rows), adjoint)

    def pack():
        return run_winograd_weight(weight.float(), size, dilation, fast, adjoint)

    return prepared(weight, (), form, pack)


def im2col_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Convolves float32 x as one matrix product."""
    epilogue = (bias, scale, shift, residual)
    return run_im2col(x, weight, *epilogue, *conv, activation)


def depthwise_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Convolves each channel by itself."""
    arguments, geometry = (weight, bias, scale, shift), (*conv[:3], activation)
    if is_read_as_it_lies(x, weight.shape[2:], conv):
        return run_depthwise(x, *arguments, residual, *geometry)
    residual = None if residual is None else in_layout(residual, True)
    y = run_depthwise(in_layout(x, True), *arguments, residual, *geometry)
    return y if is_channels_last(x) else in_layout(y, False)


def depthwise_input_grad(
    grad: Tensor, weight: Tensor, input_size: Sequence[int], conv: Conv2d
) -> Tensor:
    """Returns the gradient of the input of a depthwise convolution, in grad's layout."""
    arguments = (weight, input_size, *conv[:3])
    if is_read_as_it_lies(grad, weight.shape[2:], conv):
        return run_depthwise_input_grad(grad, *arguments)
    out = run_depthwise_input_grad(in_layout(grad, True), *arguments)
    return out if is_channels_last(grad) else in_layout(out, False)


def depthwise_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Sequence[int], conv: Conv2d
) -> Tensor:
    """Returns the gradient of the weight of a depthwise convolution."""
    arguments = (kernel_size, *conv[:3])
    if is_read_as_it_lies(x, kernel_size, conv):
        return run_depthwise_weight_grad(x, grad, *arguments)
    out = run_depthwise_weight_grad(in_layout(x, True), in_layout(grad, True), *arguments)
    return out if is_channels_last(x) else out.flatten().view(out.shape)


def is_read_as_it_lies(x: Tensor, kernel_size: Sequence[int], conv: Conv2d) -> bool:
    """Whether the depthwise kernels for x's layout are faster than those for channels_last.

    Those for contiguous maps have too many taps for the registers if the kernel is not 3x3, and
    their vectors are not full on small maps.
    """
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    if tuple(kernel_size) != (3, 3):
        return False
    if x.dtype != torch.float32:
        return True
    return conv.stride == (1, 1) and x.shape[2] * x.shape[3] >= DEPTHWISE_PIXELS
