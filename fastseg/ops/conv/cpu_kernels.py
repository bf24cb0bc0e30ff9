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
    return run_im2col(x, weight, *epilogue, *conv[:3], activation)


def depthwise_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Convolves each channel by itself.

    Contiguous float32 maps go through channels_last where that is faster: their kernel has too many
    taps for the registers if it is not 3x3, and its vectors are not full on small maps.
    """
    arguments = (weight, bias, scale, shift)
    geometry = (*conv[:3], activation)
    if (
        x.dtype != torch.float32
        or x.is_contiguous(memory_format=torch.channels_last)
        or (
            tuple(weight.shape[2:]) == (3, 3)
            and conv.stride == (1, 1)
            and x.shape[2] * x.shape[3] >= DEPTHWISE_PIXELS
        )
    ):
        return run_depthwise(x, *arguments, residual, *geometry)
    residual = None if residual is None else in_layout(residual, True)
    y = run_depthwise(in_layout(x, True), *arguments, residual, *geometry)
    return y if is_channels_last(x) else in_layout(y, False)
