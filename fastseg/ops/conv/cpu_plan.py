"""How the CPU convolves: which kernel, and torch's own (oneDNN) with its epilogue where that wins.

- Winograd's pieces (winograd_conv2d): 3x3, stride 1, "same" padding, one group; by the cost model
  of :mod:`fastseg.ops.conv.cpu_costs`.
- depthwise_conv2d, where oneDNN leaves its own depthwise kernel.
- im2col_conv2d: maps of few pixels, whose weights it reads as they are. The others' are prepared,
  and compared with what was prepared from them in each call.
- oneDNN with prepared weights, the batch norm's scale in them, and a fused epilogue: everything
  else.
- float16 and bfloat16 are computed in float32 where the processor does not multiply them faster:
  2 times as fast as torch's convolution of them, and 7 to 26 times without instructions for them.

The choice depends on shapes and dtypes alone, never on what was computed before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core import extension
from fastseg import reference
from fastseg._core.conv2d import Conv2d, in_layout_of, is_bare
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.library import cpu_kernel
from fastseg._core.winograd import winograd_axis
from fastseg.ops.conv import depthwise_conv2d as depthwise
from fastseg.ops.conv.cpu_costs import COSTS, GRADIENT_OVERHEAD
from fastseg.ops.conv.im2col_conv2d import im2col_conv2d
from fastseg.ops.conv.image_layout import image_layout
from fastseg.ops.conv.prepared_weights import prepared
from fastseg.ops.conv.winograd_conv2d import winograd_conv2d, winograd_conv2d_weight

mkldnn = torch.ops.mkldnn
run_depthwise = cpu_kernel(depthwise.depthwise_conv2d)
run_im2col = cpu_kernel(im2col_conv2d)
run_layout = cpu_kernel(image_layout)
run_winograd = cpu_kernel(winograd_conv2d)
run_winograd_weight = cpu_kernel(winograd_conv2d_weight)
if torch.backends.mkldnn.is_available():
    run_onednn = cpu_kernel(mkldnn._convolution_pointwise.default)
    run_onednn_add = cpu_kernel(mkldnn._convolution_pointwise.binary)


def has_onednn() -> bool:
    """Whether torch has oneDNN and the user has not turned it off."""
    return torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()


def plan(
    x: Tensor, weight: Tensor, conv: Conv2d, activation: str, bare: bool
) -> Callable[..., Tensor]:
    """How fastseg::atrous_conv2d is computed on the CPU; the arguments are checked.

    Args:
        x: whose shape and dtype count alone, as those of the weight.
        weight: likewise.
        conv: the geometry.
        activation: the epilogue's.
        bare: whether nothing follows the convolution, as in training.

    Returns:
        A function of x, weight, bias, scale, shift and residual.
    """
    depthwise = is_depthwise(x.shape[1], weight, conv)
    if depthwise and owns_depthwise(x, weight.shape[2:], conv, bare):
        return partial(depthwise_conv2d, conv=conv, activation=activation)
    if x.dtype == torch.float64:
        return partial(_by_reference, conv=conv, activation=activation)
    winograd = prefers_winograd(x, weight, conv)
    if x.dtype != torch.float32:
        # Other depths oneDNN pads with zeros, which make infinities NaN.
        whole = depthwise or weight.shape[1] % 8 == 0
        if winograd:
            return partial(_widened_winograd, conv=conv, activation=activation)
        if not (is_native(x.dtype) and whole):
            return partial(onednn_conv2d, conv=conv, activation=activation)
        if bare:
            return partial(_by_torch, conv=conv)
        return partial(onednn_conv2d, conv=conv, activation=activation, dtype=x.dtype)
    if prefers_im2col(x, weight, conv):
        return partial(im2col_conv2d, conv=conv, activation=activation)
    if winograd:
        return partial(winograd_conv2d, conv=conv, activation=activation)
    return partial(onednn_conv2d, conv=conv, activation=activation)


def atrous_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """fastseg::atrous_conv2d on the CPU; the arguments are checked."""
    bare = is_bare(bias, scale, shift, residual, activation)
    run = plan(x, weight, conv, activation, bare)
    return run(x, weight, bias, scale, shift, residual)


def _by_reference(x, weight, bias, scale, shift, residual, conv, activation):
    y = reference.atrous_conv2d(x, weight, bias, scale, shift, residual, *conv, activation)
    return in_layout_of(x, y)


def _by_torch(x, weight, bias, scale, shift, residual, conv):
    return F.conv2d(x, weight, None, *conv)


def _widened_winograd(x, weight, bias, scale, shift, residual, conv, activation):
    wide = None if residual is None else residual.float()
    y = winograd_conv2d(x.float(), weight, bias, scale, shift, wide, conv, activation)
    return y.to(x.dtype)


def winograd_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """By Winograd's pieces; x is float32."""
    fast = reduced_on_cpu()
    packed = winograd_weight(weight, x.shape[2:], conv.dilation, fast)
    return run_winograd(
        x, packed, weight.shape[0], bias, scale, shift, residual, conv.dilation, fast, activation
    )


def im2col_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """As one matrix product."""
    epilogue = (bias, scale, shift, residual)
    return run_im2col(x, weight, *epilogue, *conv[:3], activation)


def prefers_im2col(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether x, float32, has so few pixels that weights are read rather than prepared."""
    level = extension.simd_level()
    return im2col_wins(tuple(x.shape), tuple(weight.shape), conv, reduced_on_cpu(), level)


@functools.lru_cache(4096)
def im2col_wins(
    shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    conv: Conv2d,
    fast: bool,
    level: str | None,
) -> bool:
    """By the measured costs; arguments as of :func:`winograd_wins`."""
    costs = COSTS.get(level)
    if costs is None or conv.groups != 1:
        return False
    others = costs.overhead + costs.onednn(shape, weight_shape, conv, 1)
    if suits_winograd(weight_shape, conv):
        winograd = costs.winograd(shape, weight_shape[0], conv.dilation, fast)
        others = min(others, winograd)
    return costs.im2col(shape, weight_shape, conv) < others + costs.comparing(weight_shape)


@functools.cache
def is_native(dtype: torch.dtype) -> bool:
    """Whether the dtype is one of 16 bits that oneDNN multiplies faster than float32 here.

    It does with a matrix unit, and twice as fast on AMD's Zen 4 and 5; with Intel's instructions
    for vectors alone it takes twice as long, as measured on an Emerald Rapids.
    """
    if dtype not in (torch.bfloat16, torch.float16) or not torch._C._has_mkldnn:
        return False
    bfloat16 = dtype == torch.bfloat16
    supported = "_is_mkldnn_bf16_supported" if bfloat16 else "_is_mkldnn_fp16_supported"
    if not getattr(mkldnn, supported)():
        return False
    has_matrices = (
        torch.cpu._is_amx_tile_supported if bfloat16 else torch.cpu._is_amx_fp16_supported
    )
    return has_matrices() or not extension.is_intel()


def is_depthwise(channels: int, weight: Tensor, conv: Conv2d) -> bool:
    """One filter a channel."""
    return conv.groups > 1 and conv.groups == channels == weight.shape[0]


def owns_depthwise(x: Tensor, kernel_size: Sequence[int], conv: Conv2d, bare: bool) -> bool:
    """Whether our depthwise kernel is the faster one.

    oneDNN's own refuses paddings wider than its registers reach, and what runs in its place takes
    10 to 50 times as long. Otherwise its kernels of other sizes than 3x3 are 10 to 35 % faster, but
    for the time that a call of them takes; so are those of 3x3 with AVX2, on maps between what the
    second-level cache holds and what no cache holds. In 16 bits it is the faster one where the
    processor has instructions for them, but for an epilogue, which it would round before.
    """
    costs = COSTS.get(extension.simd_level())
    if costs is None or conv.padding[1] > costs.depthwise_reach:
        return True
    if x.dtype != torch.float32 and not (bare and is_native(x.dtype)):
        return True
    size = conv.output_size(x.shape[2:], kernel_size)
    outputs = x.shape[0] * x.shape[1] * math.prod(size)
    if tuple(kernel_size) == (3, 3) and x.dtype == torch.float32:
        return outputs < costs.depthwise_outputs or x.numel() * x.element_size() >= 1 << 25
    return outputs * math.prod(kernel_size) < 800_000


def depthwise_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Our own kernel, in channels_last where rows of pixels have too many taps for registers."""
    arguments = (weight, bias, scale, shift)
    geometry = (*conv[:3], activation)
    if (
        x.dtype != torch.float32
        or tuple(weight.shape[2:]) == (3, 3)
        or x.is_contiguous(memory_format=torch.channels_last)
    ):
        return run_depthwise(x, *arguments, residual, *geometry)
    residual = None if residual is None else in_layout(residual, True)
    y = run_depthwise(in_layout(x, True), *arguments, residual, *geometry)
    last = is_channels_last(x)
    return y if last else in_layout(y, False)


def winograd_weight(weight: Tensor, size, dilation, fast: bool, adjoint: bool = False) -> Tensor:
    """Packed for maps of that size, from a float dtype of the CPU; kept.

    Args:
        weight: (Co, Ci, 3, 3).
        size: (H, W) of the maps.
        dilation: of the convolution.
        fast: whether F(4, 3) is admitted.
        adjoint: whether it is for the gradient of the input.
    """
    axes = [winograd_axis(n, d, fast) for n, d in zip(size, dilation, strict=True)]
    form = ("winograd", tuple(axes[0].rows), tuple(axes[1].rows), adjoint)

    def pack():
        return run_winograd_weight(weight.float(), size, dilation, fast, adjoint)

    return prepared(weight, (), form, pack)


def suits_winograd(weight_shape: Sequence[int], conv: Conv2d) -> bool:
    """3x3 taps of one group that keep the map's size."""
    one = conv.groups == 1 and conv.stride == (1, 1) and conv.padding == conv.dilation
    return one and tuple(weight_shape[2:]) == (3, 3)


def prefers_winograd(x: Tensor, weight: Tensor, conv: Conv2d) -> bool:
    """Whether Winograd's pieces are eligible, and cheaper than oneDNN."""
    if x.dtype == torch.float64 or not suits_winograd(weight.shape, conv):
        return False
    rate = 2 if is_native(x.dtype) else 1
    level = extension.simd_level()
    return winograd_wins(
        tuple(x.shape), weight.shape[0], conv.dilation, reduced_on_cpu(), level, rate
    )


@functools.lru_cache(4096)
def winograd_wins(
    shape: tuple[int, ...],
    out_channels: int,
    dilation: tuple[int, int],
    fast: bool,
    level: str | None,
    rate: float,
) -> bool:
    """By the measured costs.

    Args:
        shape: (N, Ci, H, W).
        out_channels: Co.
        dilation: also the padding.
        fast: whether F(4, 3) is admitted.
        level: of SIMD.
        rate: of oneDNN's products, from those in float32.
    """
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


@functools.lru_cache(4096)
def _trains_faster(shape, out_channels: int, dilation, fast: bool, level, threads: int) -> bool:
    costs = COSTS.get(level)
    if costs is None:
        return False
    return costs.training(shape, out_channels, dilation, fast) > GRADIENT_OVERHEAD * threads


def onednn_conv2d(
    x, weight, bias, scale, shift, residual, conv: Conv2d, activation, dtype=torch.float32
) -> Tensor:
    """Convolution by oneDNN in a dtype, in channels_last: there it is fast at every dilation.

    In contiguous layout its bits depend on the number of threads. oneDNN's own ReLU and ReLU6 turn
    NaN into 0: they are fused where x is small beside the output and has none, else torch's
    activations run after it, in place.
    """
    channels_last, given = is_channels_last(x), x.dtype
    if not has_onednn() or x.numel() == 0:
        y = reference.atrous_conv2d(x, weight, bias, scale, shift, residual, *conv, activation)
        return in_layout_of(x, y)
    packed, offset, finite = onednn_weight(x, weight, bias, scale, shift, conv, dtype)
    geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)
    x = in_layout(x.to(dtype), True)
    if residual is None:
        shape = (*x.shape[:1], weight.shape[0], *conv.output_size(x.shape[2:], weight.shape[2:]))
        fused = activation in NAN_TO_0 and 2 * x.numel() <= math.prod(shape)
        if fused and finite and is_finite(x):
            (name, scalars), activation = NAN_TO_0[activation], ""
        elif activation == "hardswish":
            name, scalars, activation = "hardswish", [], ""
        else:
            name, scalars = "none", []
        y = run_onednn(x, packed, offset, *geometry, name, scalars, "")
    else:
        residual = in_layout(residual.to(dtype), True)
        y = run_onednn_add(x, residual, packed, offset, *geometry, "add", 1.0, None, [], "")
    if activation:
        y = ACTIVATE_[activation](y)
    return (y if channels_last else in_layout(y, False)).to(given)


# oneDNN's names and arguments.
NAN_TO_0 = {"relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])}
ACTIVATE_ = {
    "relu": torch.relu_,
    "relu6": lambda y: F.relu6(y, inplace=True),
    "leaky_relu": lambda y: F.leaky_relu(y, inplace=True),
    "silu": lambda y: F.silu(y, inplace=True),
    "hardswish": lambda y: F.hardswish(y, inplace=True),
}


def onednn_weight(
    x, weight, bias, scale, shift, conv: Conv2d, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, bool]:
    """The weight times scale as oneDNN wants it, ``bias * scale + shift``, if all is finite."""

    def prepare():
        folded = weight.float()
        if scale is not None:
            folded = folded * scale.float().view(-1, 1, 1, 1)
        packed = mkldnn._reorder_convolution_weight(
            folded.to(dtype), conv.padding, conv.stride, conv.dilation, conv.groups, x.shape
        )
        offset = bias if bias is None or scale is None else bias.float() * scale.float()
        if shift is not None:
            offset = shift if offset is None else offset.float() + shift.float()
        offset = None if offset is None else offset.to(dtype).contiguous()
        finite = all(is_finite(t) for t in (folded, offset) if t is not None)
        return packed, offset, finite

    return prepared(weight, (bias, scale, shift), ("oneDNN", conv, dtype), prepare)


def is_finite(t: Tensor) -> bool:
    """Whether no element is NaN or infinite; the sum of some huge ones says no, too."""
    return math.isfinite(t.sum().item())


def is_channels_last(x: Tensor) -> bool:
    """Whether the output for x is: torch's rule, in a third of the time for dense x."""
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    return torch._prims_common.suggest_memory_format(x) == torch.channels_last


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Returns x in channels_last or contiguous layout: itself where it has it."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    if x.is_contiguous(memory_format=layout):
        return x
    if x.dtype == torch.float32:
        return run_layout(x, channels_last)
    return x.contiguous(memory_format=layout)
