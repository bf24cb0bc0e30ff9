"""The choice of a kernel for a convolution on the CPU, by the measured costs in cpu_costs.py.

- Winograd's pieces: 3x3 taps, stride 1, "same" padding and one group.
- Our depthwise kernel: where oneDNN does not have a fast one.
- torch's depthwise convolution: contiguous maps, where it is faster than ours in channels_last.
- im2col: maps of few pixels, 1x1 kernels on those of some thousand, and contiguous maps whose way
  to channels_last and back would cost more: those of a network's first layer, of large kernels and
  of strides. It takes the weight as it is; all others are prepared and compared with what was
  prepared in each call.
- torch's convolution: contiguous maps and large kernels at rate 1, with AVX2.
- oneDNN with a prepared weight, the batch norm's scale in it, and a fused epilogue: all else; by
  torch's convolution where x and the weight are in channels_last and little or nothing follows.

A kernel whose taps all read padding but one is a 1x1 kernel, and the others' weights are not read.

Float16 and bfloat16 are computed in float32 where the processor does not multiply them faster: that
is twice as fast as torch's convolution of them, and 7 to 26 times without instructions for them.

The choice depends on shapes, dtypes and the layout alone, never on what was computed before.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastseg._core import extension
from fastseg._core.conv2d import Conv2d, is_bare, live_range
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.remember import MOST_CALLS
from fastseg.ops.conv.cpu_cost_model import output_pixels
from fastseg.ops.conv.cpu_costs import (
    BLOCK_CHANNELS,
    COSTS,
    DIRECT_CHANNELS,
    DIRECT_FLOPS,
    DIRECT_KERNEL,
    EPILOGUE_OUTPUTS,
    GRADIENT_OVERHEAD,
    NATIVE_RATE,
    PLANES_CHANNELS,
)
from fastseg.ops.conv.cpu_depthwise_plan import (
    is_depthwise,
    owns_depthwise,
    torch_wins_on_planes,
)
from fastseg.ops.conv.cpu_forms import (
    as_it_lies,
    by_groups,
    by_layout,
    by_live_tap,
    by_reference,
    middle_of,
    planes_by_torch,
    widened_winograd,
)
from fastseg.ops.conv.cpu_kernels import depthwise_conv2d, im2col_conv2d, winograd_conv2d
from fastseg.ops.conv.cpu_onednn import (
    has_onednn,
    is_native,
    onednn_conv2d,
    torch_conv2d,
    torch_takes_onednn,
)


def plan(
    x: Tensor, weight: Tensor, conv: Conv2d, activation: str, bare: bool
) -> Callable[..., Tensor]:
    """Chooses how fastseg::atrous_conv2d computes a call, whose arguments have been checked.

    Args:
        x: a tensor of x's shape and dtype; its values are not read.
        weight: a tensor of the weight's shape and dtype; its values are not read.
        conv: the geometry.
        activation: the activation at the end of the epilogue.
        bare: whether nothing follows the convolution, which is so in training.

    Returns:
        A function of x, weight, bias, scale, shift and residual.
    """
    depthwise = is_depthwise(x.shape[1], weight, conv)
    if depthwise:
        owned = owns_depthwise(x, weight.shape[2:], conv, bare)
        run = partial(
            depthwise_conv2d if owned else onednn_conv2d, conv=conv, activation=activation
        )
        if torch_wins_on_planes(x.shape, x.dtype, weight.shape[2:], conv, bare):
            by_torch = partial(planes_by_torch, conv=conv, activation=activation)
            return partial(by_layout, planes=by_torch, channels_last=run)
        if owned:
            return run
    if x.dtype == torch.float64:
        return partial(by_reference, conv=conv, activation=activation)
    if has_one_live_tap(x, weight, conv):
        point = Conv2d(conv.stride, (0, 0), (1, 1), 1)
        run = plan(x, middle_of(weight), point, activation, bare)
        return partial(by_live_tap, run=run)
    if x.dtype != torch.float32:
        winograd = prefers_winograd(x, weight, conv)
        # oneDNN pads other depths with zeros, which turn infinities into NaN.
        whole = depthwise or weight.shape[1] % 8 == 0
        if winograd:
            return partial(widened_winograd, conv=conv, activation=activation)
        if not (is_native(x.dtype) and whole):
            return partial(onednn_conv2d, conv=conv, activation=activation)
        if bare:
            return partial(torch_conv2d, conv=conv, activation="")
        return partial(onednn_conv2d, conv=conv, activation=activation, dtype=x.dtype)
    by_product = partial(im2col_conv2d, conv=conv, activation=activation)
    if prefers_im2col(x, weight, conv):
        return by_product
    run = _plan_large(x, weight, conv, activation, bare)
    if torch_wins_in_blocks(x, weight, conv):
        by_torch = partial(planes_by_torch, conv=conv, activation=activation)
        return partial(by_layout, planes=by_torch, channels_last=run)
    if prefers_planes(x, weight, conv):
        return partial(by_layout, planes=by_product, channels_last=run)
    return run


def _plan_large(x, weight, conv: Conv2d, activation: str, bare: bool) -> Callable[..., Tensor]:
    """Chooses for float32 maps that have too many pixels for im2col, but for contiguous ones."""
    if prefers_winograd(x, weight, conv):
        return partial(winograd_conv2d, conv=conv, activation=activation)
    if any(p >= n for p, n in zip(conv.padding, x.shape[2:], strict=True)):
        # oneDNN's bits would depend on the number of threads.
        by_product = im2col_conv2d if conv.groups == 1 else by_groups
        return partial(by_product, conv=conv, activation=activation)
    by_onednn = partial(onednn_conv2d, conv=conv, activation=activation)
    outputs = output_pixels(x.shape, weight.shape, conv) * weight.shape[0]
    few = bare or outputs <= EPILOGUE_OUTPUTS
    if few and torch_takes_onednn(x.shape, weight.shape, conv):
        return partial(as_it_lies, conv=conv, activation=activation, others=by_onednn)
    return by_onednn


def atrous_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Computes fastseg::atrous_conv2d on the CPU; the arguments have been checked."""
    bare = is_bare(bias, scale, shift, residual, activation)
    run = plan(x, weight, conv, activation, bare)
    return run(x, weight, bias, scale, shift, residual)


def has_one_live_tap(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether a "same" convolution of one group is that of the tap in the middle alone.

    All others read nothing but padding, as those of a rate of at least the map's size.
    """
    return _has_one_live_tap(tuple(x.shape[2:]), tuple(weight.shape[2:]), conv)


@functools.lru_cache(MOST_CALLS)
def _has_one_live_tap(size: tuple[int, ...], kernel: tuple[int, ...], conv: Conv2d) -> bool:
    middle = tuple(d * (k // 2) for k, d in zip(kernel, conv.dilation, strict=True))
    if kernel == (1, 1) or conv.groups != 1 or conv.padding != middle:
        return False
    outputs = conv.output_size(size, kernel)
    for k, *axis in zip(kernel, size, outputs, *conv[:3], strict=True):
        ranges = [live_range(*axis, tap)[1] for tap in range(k) if tap != k // 2]
        if any(live.start < live.stop for live in ranges):
            return False
    return True


def _of_shapes(choose: Callable[..., bool]) -> Callable[[Tensor, Tensor, Conv2d], bool]:
    """Makes a choice by shapes, which is remembered, one by float32 x and a weight.

    Args:
        choose: a function of x's shape, the weight's, the geometry, whether F(4, 3) is admitted and
            the SIMD level.
    """
    remembered = functools.lru_cache(MOST_CALLS)(choose)

    @functools.wraps(choose)
    def of_tensors(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
        fast, level = reduced_on_cpu(), extension.simd_level()
        return remembered(tuple(x.shape), tuple(weight.shape), conv, fast, level)

    return of_tensors


@_of_shapes
def prefers_im2col(shape, weight_shape, conv: Conv2d, fast: bool, level: str | None) -> bool:
    """Whether float32 x has so few pixels that im2col is the fastest."""
    costs = COSTS.get(level)
    if costs is None or conv.groups != 1:
        return False
    others = costs.overhead + costs.onednn(shape, weight_shape, conv, 1)
    if suits_winograd(weight_shape, conv):
        winograd = costs.winograd(shape, weight_shape[0], conv.dilation, fast)
        others = min(others, winograd)
    return costs.im2col(shape, weight_shape, conv) < others + costs.comparing(weight_shape)


@_of_shapes
def prefers_planes(shape, weight_shape, conv: Conv2d, fast: bool, level: str | None) -> bool:
    """Whether float32 x is best multiplied as it lies where it is contiguous.

    Planes are a factor of a 1x1 convolution's product; other kernels have them padded and cut into
    the phases of the stride.
    """
    costs = COSTS.get(level)
    if (*weight_shape[2:], *conv[:2], conv.groups) == (1, 1, (1, 1), (0, 0), 1):
        return True
    of_group = min(weight_shape[0] // conv.groups, weight_shape[1])
    small = conv.groups > 1 and of_group < PLANES_CHANNELS
    if costs is None or small or not suits_planes(shape[2:], weight_shape[2:], conv):
        return False
    others = costs.by_channels_last(shape, weight_shape, conv) + costs.comparing(weight_shape)
    if suits_winograd(weight_shape, conv):
        others = min(others, costs.winograd(shape, weight_shape[0], conv.dilation, fast))
    return costs.planes(shape, weight_shape, conv) < others


def torch_wins_in_blocks(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether torch's convolution of contiguous float32 x is faster than our products of planes.

    It is oneDNN's for blocks of channels, which sums in one order whatever the number of threads:
    not so its other ones, for dilated kernels. Other processors than those with AVX2 have others.
    """
    return has_onednn() and _suits_blocks(x, weight, conv)


@_of_shapes
def _suits_blocks(shape, weight_shape, conv: Conv2d, fast: bool, level: str | None) -> bool:
    if level != "avx2" or conv.groups != 1 or conv.dilation != (1, 1):
        return False
    flops = 2 * output_pixels(shape, weight_shape, conv) * math.prod(weight_shape)
    large = min(weight_shape[2:]) >= DIRECT_KERNEL and weight_shape[1] >= DIRECT_CHANNELS
    return large and flops >= DIRECT_FLOPS and torch_takes_onednn(shape, weight_shape, conv)


def planes_pay(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether contiguous planes with an epilogue are faster than torch's three ops.

    torch's convolution brings maps into blocks of channels and back, and takes few of them for a
    whole block. Its own activation and batch norm are a pass over the output each.
    """
    if x.dtype != torch.float32 or not prefers_planes(x, weight, conv):
        return False
    if torch_wins_in_blocks(x, weight, conv):
        return False
    if weight.shape[1] <= BLOCK_CHANNELS:
        return True
    return conv.groups == 1 and _is_below_torchs_ops(x, weight, conv)


@_of_shapes
def _is_below_torchs_ops(shape, weight_shape, conv, fast: bool, level: str | None) -> bool:
    costs = COSTS.get(level)
    return costs is not None and costs.planes(shape, weight_shape, conv) < costs.in_blocks(
        shape, weight_shape, conv
    )


def suits_planes(size: Sequence[int], kernel: Sequence[int], conv: Conv2d) -> bool:
    """Whether im2col multiplies contiguous planes as they lie, which needs the compiled kernels.

    Those of few pixels, or mostly of padding, go to channels_last and back.
    """
    outputs = conv.output_size(size, kernel)
    axes = zip(size, outputs, kernel, *conv[:3], strict=True)
    vertical, horizontal = ((ctypes.c_int64 * 6)(*axis) for axis in axes)
    suits = extension._cpu.fastseg_im2col_suits_planes
    suits.restype = ctypes.c_bool
    return suits(vertical, horizontal)


def suits_winograd(weight_shape: Sequence[int], conv: Conv2d) -> bool:
    """Whether the kernel has 3x3 taps and one group and keeps the map's size."""
    one = conv.groups == 1 and conv.stride == (1, 1) and conv.padding == conv.dilation
    return one and tuple(weight_shape[2:]) == (3, 3)


def prefers_winograd(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether Winograd's pieces are possible and cheaper than oneDNN."""
    if x.dtype == torch.float64 or not suits_winograd(weight.shape, conv):
        return False
    rate = NATIVE_RATE if is_native(x.dtype) else 1
    level = extension.simd_level()
    return _winograd_wins(
        tuple(x.shape), weight.shape[0], conv.dilation, reduced_on_cpu(), level, rate
    )


@functools.lru_cache(MOST_CALLS)
def _winograd_wins(
    shape: tuple[int, ...],
    out_channels: int,
    dilation: tuple[int, int],
    fast: bool,
    level: str | None,
    rate: float,
) -> bool:
    costs = COSTS.get(level)
    if costs is None:
        return False
    conv = Conv2d((1, 1), dilation, dilation, 1)
    theirs = costs.onednn(shape, (out_channels, shape[1], 3, 3), conv, rate)
    return costs.winograd(shape, out_channels, dilation, fast) < theirs + costs.overhead


def trains_faster(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether Winograd's pieces save more of a training step than an op's own gradient costs."""
    if x.dtype != torch.float32 or not suits_winograd(weight.shape, conv):
        return False
    level, threads = extension.simd_level(), torch.get_num_threads()
    shape, channels = tuple(x.shape), weight.shape[0]
    return _trains_faster(shape, channels, conv.dilation, reduced_on_cpu(), level, threads)


@functools.lru_cache(MOST_CALLS)
def _trains_faster(
    shape: tuple[int, ...],
    out_channels: int,
    dilation: tuple[int, int],
    fast: bool,
    level: str | None,
    threads: int,
) -> bool:
    costs = COSTS.get(level)
    if costs is None:
        return False
    return costs.training(shape, out_channels, dilation, fast) > GRADIENT_OVERHEAD * threads
