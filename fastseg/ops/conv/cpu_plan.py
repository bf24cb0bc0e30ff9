"""The choice of a kernel for a convolution on the CPU, by the measured costs in cpu_costs.py.

- Winograd's pieces: 3x3 taps, stride 1, "same" padding and one group.
- Our depthwise kernel: where oneDNN does not have a fast one.
- torch's depthwise convolution: contiguous maps, where it is faster than ours in channels_last.
- im2col: maps of few pixels, and 1x1 kernels on those of some thousand and on all that are
  contiguous. It takes the weight as it is; all others are prepared and compared with what was
  prepared in each call.
- oneDNN with a prepared weight, the batch norm's scale in it, and a fused epilogue: all else; by
  torch's convolution where x and the weight are in channels_last and little or nothing follows.

A kernel whose taps all read padding but one is a 1x1 kernel, and the others' weights are not read.

Float16 and bfloat16 are computed in float32 where the processor does not multiply them faster: that
is twice as fast as torch's convolution of them, and 7 to 26 times without instructions for them.

The choice depends on shapes, dtypes and the layout alone, never on what was computed before.
"""

from __future__ import annotations

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
from fastseg.ops.conv.cpu_costs import (
    COSTS,
    DEPTHWISE_BYTES,
    DEPTHWISE_PIXELS,
    DEPTHWISE_PRODUCTS,
    EPILOGUE_OUTPUTS,
    GRADIENT_OVERHEAD,
    NATIVE_RATE,
    STRIDED_BYTES,
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
from fastseg.ops.conv.cpu_onednn import has_onednn, onednn_conv2d, torch_conv2d


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
    winograd = prefers_winograd(x, weight, conv)
    if x.dtype != torch.float32:
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
    if winograd:
        return partial(winograd_conv2d, conv=conv, activation=activation)
    if any(p >= n for p, n in zip(conv.padding, x.shape[2:], strict=True)):
        # oneDNN's bits would depend on the number of threads.
        return by_product if conv.groups == 1 else partial(by_groups, **by_product.keywords)
    by_onednn = partial(onednn_conv2d, conv=conv, activation=activation)
    if suits_planes(weight.shape, conv):
        return partial(by_layout, planes=by_product, channels_last=by_onednn)
    outputs = (
        x.shape[0] * weight.shape[0] * math.prod(conv.output_size(x.shape[2:], weight.shape[2:]))
    )
    few = bare or outputs <= EPILOGUE_OUTPUTS
    if few and torch_takes_onednn(x.shape, weight.shape, conv):
        return partial(as_it_lies, conv=conv, activation=activation, others=by_onednn)
    return by_onednn


def atrous_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Computes fastseg::atrous_conv2d on the CPU; the arguments have been checked."""
    bare = is_bare(bias, scale, shift, residual, activation)
    run = plan(x, weight, conv, activation, bare)
    return run(x, weight, bias, scale, shift, residual)


@functools.cache
def is_native(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies this dtype, one of 16 bits, faster than float32 here.

    It does with a matrix unit, and on AMD's processors with vector instructions for it. Intel's
    vector instructions alone are slower than float32's: see NATIVE_RATE.
    """
    if dtype not in (torch.bfloat16, torch.float16) or not torch._C._has_mkldnn:
        return False
    bfloat16 = dtype == torch.bfloat16
    supported = "_is_mkldnn_bf16_supported" if bfloat16 else "_is_mkldnn_fp16_supported"
    if not getattr(torch.ops.mkldnn, supported)():
        return False
    has_matrices = (
        torch.cpu._is_amx_tile_supported if bfloat16 else torch.cpu._is_amx_fp16_supported
    )
    return has_matrices() or not extension.is_intel()


def is_depthwise(channels: int, weight: Tensor, conv: Conv2d) -> bool:
    """Whether each channel has one filter of its own."""
    return conv.groups > 1 and conv.groups == channels == weight.shape[0]


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


def owns_depthwise(x: Tensor, kernel_size: Sequence[int], conv: Conv2d, bare: bool) -> bool:
    """Whether our depthwise kernel is faster than oneDNN's.

    In 16 bits it is not where the processor has instructions for them, except with an epilogue,
    before which oneDNN would round.
    """
    costs = COSTS.get(extension.simd_level())
    if costs is None or conv.padding[1] > costs.depthwise_reach:
        return True
    if x.dtype != torch.float32 and not (bare and is_native(x.dtype)):
        return True
    size = conv.output_size(x.shape[2:], kernel_size)
    outputs = x.shape[0] * x.shape[1] * math.prod(size)
    if tuple(kernel_size) == (3, 3) and x.dtype == torch.float32:
        large = x.numel() * x.element_size() >= DEPTHWISE_BYTES
        return outputs < costs.depthwise_outputs or large
    return outputs * math.prod(kernel_size) < DEPTHWISE_PRODUCTS


def torch_takes_onednn(shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> bool:
    """Whether torch's convolution of float32 is oneDNN's whatever the number of threads.

    torch has other libraries, some with one thread alone, for 1x1 kernels and for one small image
    (ConvParams::use_mkldnn in its Convolution.cpp); their bits depend on the number of threads.
    """
    if math.prod(weight_shape[2:]) == 1 and conv.stride == (1, 1):
        return False
    large = math.prod(shape) > 20480 or min(weight_shape[2:]) > 3
    return conv.groups > 1 or shape[0] > 1 or large


def torch_wins_on_planes(
    shape: Sequence[int], dtype: torch.dtype, kernel_size: Sequence[int], conv: Conv2d, bare: bool
) -> bool:
    """Whether torch's depthwise convolution is the fastest for float32 maps that are contiguous.

    Ours brings most of them to channels_last and back. With an epilogue that pays for 3x3 kernels,
    unless they have a stride and x is large, and for twice as many products of other kernels.

    Args:
        shape: (N, C, H, W) of x.
        dtype: x's dtype.
        kernel_size: (kh, kw).
        conv: the geometry.
        bare: whether nothing follows the convolution, which is so in training.
    """
    costs = COSTS.get(extension.simd_level())
    if costs is None or dtype != torch.float32 or conv.padding[1] > costs.depthwise_reach:
        return False
    if not torch_takes_onednn(shape, (shape[1], 1, *kernel_size), conv):
        return False
    size = conv.output_size(shape[2:], kernel_size)
    is_3x3 = tuple(kernel_size) == (3, 3)
    least = costs.depthwise_planes * (1 if bare or is_3x3 else 2)
    if shape[0] * shape[1] * math.prod((*size, *kernel_size)) < least:
        return False
    if not is_3x3:
        return has_onednn()
    if conv.stride != (1, 1):
        return (bare or 4 * math.prod(shape) >= STRIDED_BYTES) and has_onednn()
    return bare and math.prod(shape[2:]) < DEPTHWISE_PIXELS and has_onednn()


def owns_planes(x: Tensor, kernel_size: Sequence[int], conv: Conv2d) -> bool:
    """Whether our depthwise kernel with its epilogue is the fastest for contiguous maps."""
    of_run = extension.simd_level(), has_onednn()
    return _owns_planes(x.shape, x.dtype, tuple(kernel_size), conv, *of_run)


@functools.lru_cache(MOST_CALLS)
def _owns_planes(shape, dtype, kernel_size, conv: Conv2d, level: str | None, onednn: bool) -> bool:
    if torch_wins_on_planes(shape, dtype, kernel_size, conv, False):
        return False
    return owns_depthwise(torch.empty(shape, dtype=dtype, device="meta"), kernel_size, conv, False)


def prefers_im2col(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether float32 x has so few pixels that im2col is the fastest."""
    level = extension.simd_level()
    return _im2col_wins(tuple(x.shape), tuple(weight.shape), conv, reduced_on_cpu(), level)


@functools.lru_cache(MOST_CALLS)
def _im2col_wins(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    conv: Conv2d,
    fast: bool,
    level: str | None,
) -> bool:
    costs = COSTS.get(level)
    if costs is None or conv.groups != 1:
        return False
    others = costs.overhead + costs.onednn(shape, weight_shape, conv, 1)
    if suits_winograd(weight_shape, conv):
        winograd = costs.winograd(shape, weight_shape[0], conv.dilation, fast)
        others = min(others, winograd)
    return costs.im2col(shape, weight_shape, conv) < others + costs.comparing(weight_shape)


def suits_planes(weight_shape: Sequence[int], conv: Conv2d) -> bool:
    """Whether contiguous planes as they lie are a factor of the product: a 1x1 convolution."""
    return (*weight_shape[2:], conv.groups) == (1, 1, 1) and conv[:2] == ((1, 1), (0, 0))


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
