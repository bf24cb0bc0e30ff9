"""Depthwise convolution with its epilogue, and its gradients, on NVIDIA GPUs.

``y[c, p] = act((sum_tap weight[c, tap] x[c, p + tap] + bias) * scale + shift + residual)``, groups
equal to the channels. Sums are float32 in registers, the epilogue is applied before they are
stored. channels_last: a program takes 64 pixels of 128 bytes of channels, in accesses of 16 bytes.
At rate d those pixels lie d apart (see :mod:`fastseg.kernels.conv.depthwise_forward`), so that they
share what they read at any rate: 100 pixels for 64 outputs of a 3x3, from L2, and each pixel once
from memory. Contiguous: a block of pixels of one plane, its rows d apart, for the same reason.

The input's gradient is the same kernel with the taps turned around; at a stride it reads, of its
taps, those that an output ends at. The weight's gradient sums a run of tiles for each program, and
the runs in their order after that: deterministic.

Floor: x and the residual read and y written once; the weight's gradient: x and grad read once. In
bfloat16, eight images of 960 channels and 33 x 33 pixels: 33 MB or 11 microseconds at 3 TB/s for
each of the three; the 0.15 GFLOP of a 3x3 take 3 at 60 TFLOP/s of float32. These figures are
arithmetic: no run on a GPU stands behind them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from fastseg._core.conv2d import Conv2d, empty_output, in_layout_of
from fastseg.kernels.conv.arguments import Window
from fastseg.kernels.conv.depthwise_forward import channels_last_kernel, contiguous_kernel
from fastseg.kernels.conv.depthwise_tiles import (
    BLOCK,
    LARGEST_KERNEL,
    OPTIONS,
    Pair,
    channel_blocks,
    choose_tile,
    count_phases,
    lanes,
    largest_registers,
    plane_blocks,
    runs_of,
    tiling_of,
    weight_grad_taps,
)
from fastseg.kernels.conv.depthwise_weight_grad import (
    channels_last_weight_grad_kernel,
    contiguous_weight_grad_kernel,
)
from fastseg.kernels.conv.epilogue import Operands, apply_epilogue
from fastseg.kernels.conv.layouts import layout_of
from fastseg.kernels.conv.torch_conv2d import torch_input_grad, torch_weight_grad


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    activation: str,
) -> Tensor:
    """See :func:`fastseg.reference.atrous_conv2d`, of groups = C; the arguments are checked.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw).
        bias: (C,), of any floating dtype, or None.
        scale: (C,), of any floating dtype, or None.
        shift: (C,), of any floating dtype, or None.
        residual: a tensor of the output's shape and x's dtype, or None.
        stride: (vertical, horizontal).
        padding: (vertical, horizontal).
        dilation: (vertical, horizontal).
        activation: "", "relu", "relu6", "leaky_relu", "silu" or "hardswish".

    Returns:
        (N, C, h, w), channels_last if x is, else contiguous.
    """
    geometry = (stride, padding, dilation)
    operands = Operands(bias, scale, shift, residual)
    if not _runs_here(x, weight.shape[2:]):
        y = in_layout_of(x, F.conv2d(x, weight, None, *geometry, x.shape[1]))
        return apply_epilogue(y, operands, activation)
    size = Conv2d(*geometry, groups=x.shape[1]).output_size(x.shape[2:], weight.shape[2:])
    return _convolve(x, weight, operands, size, geometry, activation)


def depthwise_conv2d_input_grad(
    grad: Tensor,
    weight: Tensor,
    input_size: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """The gradient of x (N, C, H, W) for grad (N, C, h, w); `input_size` is (H, W).

    See :func:`fastseg.reference.atrous_conv2d_input_grad`, of groups = C.
    """
    geometry = (stride, padding, dilation)
    if _runs_here(grad, weight.shape[2:]):
        return _convolve(grad, weight, Operands(), input_size, geometry, transposed=True)
    return torch_input_grad(grad, weight, input_size, geometry, grad.shape[1])


def depthwise_conv2d_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> Tensor:
    """The gradient of the weight (C, 1, kh, kw) for x (N, C, H, W) and grad (N, C, h, w).

    See :func:`fastseg.reference.atrous_conv2d_weight_grad`, of groups = C.
    """
    channels, geometry = x.shape[1], (stride, padding, dilation)
    if x.numel() == 0 or grad.numel() == 0:
        out = x.new_zeros((channels, 1, *kernel_size))
    elif _runs_here(x, kernel_size):
        sums = _weight_grad_sums(x, grad, kernel_size, geometry)
        out = sums.sum(0).t().to(x.dtype).reshape(channels, 1, *kernel_size)
    else:
        return torch_weight_grad(x, grad, kernel_size, geometry, channels)
    return in_layout_of(x, out)


def _runs_here(x: Tensor, kernel_size: Pair) -> bool:
    """Whether these kernels are ahead: GPUs have few float64 units, registers hold few taps."""
    return x.dtype != torch.float64 and max(kernel_size) <= LARGEST_KERNEL


def _window(size: Pair, out_size: Pair, geometry: Sequence[Pair]) -> Window:
    """What the kernels take of an input of `size` and an output of `out_size`."""
    return Window(*size, *out_size, *(n for pair in geometry for n in pair))


def _convolve(
    x: Tensor,
    weight: Tensor,
    operands: Operands,
    size: Pair,
    geometry: tuple[Pair, Pair, Pair],
    activation: str = "",
    transposed: bool = False,
) -> Tensor:
    """The convolution of x, or its adjoint, to an output of `size`."""
    layout = layout_of(x)
    images, channels = x.shape[:2]
    out = empty_output(x, channels, size)
    if out.numel() == 0:
        return out
    stride, _, dilation = geometry
    kernel = weight.shape[2:]
    phases = count_phases(size, stride, dilation, transposed)
    x, weight = x.contiguous(memory_format=layout), weight.reshape(channels, -1)
    operands = operands.in_layout(layout)
    window = _window(x.shape[2:], size, geometry)
    constants = {
        "KH": kernel[0],
        "KW": kernel[1],
        "TRANSPOSED": transposed,
        "ACTIVATION": activation,
    }
    if layout == torch.contiguous_format:
        blocks = plane_blocks(size, phases)
        contiguous_kernel[(blocks * images * channels,)](
            x,
            weight.contiguous(),
            out,
            operands,
            channels,
            window,
            phases[0],
            blocks,
            BLOCK=BLOCK,
            **constants,
            **OPTIONS,
        )
        return out
    tile = choose_tile(size, phases)
    tiling = tiling_of(images, size, phases, tile)
    constants |= channel_blocks(channels, x.dtype, 8)
    channels_last_kernel[(tiling.tiles * triton.cdiv(channels, constants["CHANNELS"]),)](
        x,
        weight.t().contiguous(),
        out,
        operands,
        channels // constants["VECTOR"],
        window,
        tiling,
        TILE=tile,
        **constants,
        maxnreg=largest_registers(kernel[1]),
        **OPTIONS,
    )
    return out


def _weight_grad_sums(
    x: Tensor, grad: Tensor, kernel_size: Pair, geometry: tuple[Pair, Pair, Pair]
) -> Tensor:
    """The sums of each run of tiles, (runs, kh * kw, C) float32, to be summed over the runs."""
    layout = layout_of(x)
    x, grad = (t.contiguous(memory_format=layout) for t in (x, grad))
    images, channels = x.shape[:2]
    size = grad.shape[2:]
    stride, _, dilation = geometry
    phases = count_phases(size, stride, dilation, transposed=False)
    window = _window(x.shape[2:], size, geometry)
    taps = weight_grad_taps(kernel_size)
    row_groups = kernel_size[0] // taps["TAP_ROWS"]

    def empty_sums(runs: int) -> Tensor:
        return x.new_empty((runs, math.prod(kernel_size), channels), dtype=torch.float32)

    if layout == torch.contiguous_format:
        blocks = plane_blocks(size, phases)
        sums = empty_sums(runs_of(channels, images * blocks))
        contiguous_weight_grad_kernel[(channels, sums.shape[0], row_groups)](
            x,
            grad,
            sums,
            channels,
            window,
            phases[0],
            blocks,
            images * blocks,
            BLOCK=BLOCK,
            LANES=32 * OPTIONS["num_warps"],
            **taps,
            **OPTIONS,
        )
        return sums
    tile = choose_tile(size, phases)
    tiling = tiling_of(images, size, phases, tile)
    constants = channel_blocks(channels, x.dtype, 4)
    blocks = triton.cdiv(channels, constants["CHANNELS"])
    sums = empty_sums(runs_of(blocks, tiling.tiles))
    channels_last_weight_grad_kernel[(blocks, sums.shape[0], row_groups)](
        x,
        grad,
        sums,
        channels // constants["VECTOR"],
        window,
        tiling,
        TILE=tile,
        LANES=lanes(constants),
        **constants,
        **taps,
        **OPTIONS,
    )
    return sums
