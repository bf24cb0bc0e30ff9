"""The choice of the kernel that convolves for a Conv2d of an optimised model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling

from fastseg._core.conv2d import Conv2d
from fastseg._core.library import call
from fastseg._core.onnx_export import is_exporting
from fastseg._core.plain_tensors import takes_no_gradient
from fastseg.nn.atrous_conv_bn_act import geometry
from fastseg.ops import atrous_conv2d
from fastseg.ops.conv import cpu_depthwise_plan, cpu_plan, cpu_pointwise
from fastseg.ops.conv.image_layout import image_layout
from fastseg.optimize.classify import same_padding
from fastseg.optimize.classify.same_padding import pads_same


def is_left_to_torch() -> bool:
    """Whether torch's modules run, for ONNX, which has no ops of fastseg, or forward-mode AD."""
    if is_dynamo_compiling():
        return False
    return forward_ad._current_level >= 0 or is_exporting()


def is_map(x: Tensor) -> bool:
    """Whether x is an image, on GPUs of more than one pixel: torch is faster for vectors there."""
    return x.dim() == 4 and (x.is_cpu or x.shape[2] > 1 or x.shape[3] > 1)


def is_left_to_inductor(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether torch.compile with freezing is as fast, as it fuses more into oneDNN's kernels.

    Without freezing it neither prepares weights nor fuses anything into a convolution.
    """
    if not (x.is_cpu and is_compiling() and _freezes()):
        return False
    return not may_own(conv) or (conv.groups > 1 and max(conv.dilation) == 1)


def _freezes() -> bool:
    # Only the compiler asks, and has loaded it; an import with fastseg would take 1.4 s and 150 MB.
    from torch._inductor import config

    return config.freezing


def owns(conv: nn.Conv2d, x: Tensor, gradient: bool) -> bool:
    """Whether fastseg's convolution is the faster one, forward and backward.

    On GPUs it is for atrous and depthwise convolutions alone, which cuDNN is known to be slow at.
    On the CPU, as measured, it is for depthwise ones that are atrous, if a gradient is needed, and
    for those in channels_last or with our own kernel, if none is.

    Args:
        conv: the module.
        x: its input (N, Ci, H, W).
        gradient: whether a gradient may be needed.
    """
    if not may_own(conv):
        return False
    atrous = max(conv.dilation) > 1
    if x.device.type != "cpu":
        return atrous or conv.groups > 1
    if conv.groups > 1 and gradient:
        return atrous
    if conv.groups > 1 and is_channels_last(x):
        return True
    geometry = same_padding.even(conv, x) if pads_same(conv) else as_geometry(conv)
    if geometry is None:
        return False
    if conv.groups > 1:
        return not is_compiling() and cpu_depthwise_plan.owns_planes(x, conv.kernel_size, geometry)
    if is_compiling():
        return True
    faster = cpu_plan.trains_faster if gradient else cpu_plan.prefers_winograd
    return faster(x, conv.weight, geometry)


def pays_in_evaluation(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether an op with its epilogue is faster on the CPU than a module that is not prepared.

    A float32 map that is contiguous is multiplied as it lies, or brought to channels_last and back.
    That costs what the epilogue saves, unless ours skips or saves products or has few channels.
    """
    if is_compiling() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
        return True
    return (
        is_channels_last(x)
        or _is_pointwise(conv)
        or max(conv.dilation) > 1
        or owns(conv, x, False)
        or (not pads_same(conv) and cpu_plan.planes_pay(x, conv.weight, as_geometry(conv)))
    )


def may_own(conv: nn.Conv2d) -> bool:
    """Whether :func:`owns` is true of some map: the convolution is depthwise or fit for Winograd.

    With fewer channels an op's autograd layer, which is Python, takes what the kernel saves.
    """
    if conv.groups > 1:
        return conv.groups == conv.in_channels == conv.out_channels
    channels = min(conv.in_channels, conv.out_channels)
    same = pads_same(conv) or as_geometry(conv).padding == conv.dilation
    return channels >= 32 and conv.kernel_size == (3, 3) and tuple(conv.stride) == (1, 1) and same


def output_size(conv: nn.Conv2d, x: Tensor) -> list[int]:
    """The (h, w) of what a convolution makes of a map."""
    if pads_same(conv):
        return same_padding.output_size(conv, x)
    return as_geometry(conv).output_size(x.shape[2:], conv.kernel_size)


def as_geometry(conv: nn.Conv2d) -> Conv2d:
    """The geometry of a convolution, with its padding in pixels."""
    return Conv2d(conv.stride, same_padding.own_padding(conv), conv.dilation, conv.groups)


def is_channels_last(x: Tensor) -> bool:
    """Whether x is dense in that layout, which is never so of vmap's tensors."""
    return not _is_batched() and x.is_contiguous(memory_format=torch.channels_last)


def in_channels_last(x: Tensor) -> Tensor:
    """Returns x in the layout that the CPU's kernels are the fastest in, vmap's tensors as is."""
    if not x.is_cpu or _is_batched():
        return x
    return _in_layout(x, torch.channels_last)


def in_contiguous(x: Tensor) -> Tensor:
    """Returns x as a function of torch wants it that makes maps contiguous first."""
    return _in_layout(x, torch.contiguous_format) if x.is_cpu and not _is_batched() else x


def _in_layout(x: Tensor, layout: torch.memory_format) -> Tensor:
    """Returns x in a layout, if possible by a kernel that takes down to a tenth of torch's time."""
    if x.dim() != 4 or x.is_contiguous(memory_format=layout):
        return x
    to_channels_last = layout is torch.channels_last
    other = torch.contiguous_format if to_channels_last else torch.channels_last
    if (
        x.dtype == torch.float32
        and x.is_contiguous(memory_format=other)
        and takes_no_gradient((x,))
    ):
        return call(image_layout, (x,), to_channels_last)
    return x.contiguous(memory_format=layout) if to_channels_last else x


def _is_batched() -> bool:
    return not is_dynamo_compiling() and peek_interpreter_stack() is not None


def tensors_of(conv: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
    """The weight and bias, past nn.Module.__getattr__, which takes as long as both look-ups."""
    held = conv._parameters
    weight = held.get("weight")
    return (conv.weight, conv.bias) if weight is None else (weight, held.get("bias"))


def has_its_kernel(conv: nn.Conv2d) -> bool:
    """Whether a convolution's weight is of its kernel's size, as nobody gave it another weight."""
    weight = tensors_of(conv)[0]
    return weight.dim() == 4 and weight.shape[2:] == conv.kernel_size


def convolve(
    conv: nn.Conv2d,
    x: Tensor,
    folded: tuple[Tensor, Tensor] | None = None,
    activation: str = "",
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves by one op in channels_last."""
    if is_channels_last(x):
        return apply(conv, x, folded, activation, residual)
    if _is_pointwise(conv) and x.is_cpu and not is_compiling():
        weight, bias = tensors_of(conv)
        arguments = (x, weight, bias, *(folded or (None, None)))
        given = (*arguments, residual)
        if takes_no_gradient(given) and cpu_pointwise.suits(*given):
            y = cpu_pointwise.pointwise_conv2d(*arguments, activation, residual)
            if y is not None:
                return y
    return apply(conv, in_channels_last(x), folded, activation, residual)


def _is_pointwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution is one matrix product."""
    return (
        conv.kernel_size == (1, 1)
        and conv.groups == 1
        and tuple(conv.stride) == (1, 1)
        and conv.padding in ((0, 0), "valid", "same")
        and not pads_same(conv)
    )


def apply(
    conv: nn.Conv2d,
    x: Tensor,
    folded: tuple[Tensor, Tensor] | None = None,
    activation: str = "",
    residual: Tensor | None = None,
) -> Tensor:
    """Convolves by one op in the layout that x has."""
    weight, bias = tensors_of(conv)
    scale, shift = folded or (None, None)
    if pads_same(conv):
        x, (stride, padding, dilation, groups) = same_padding.padded(conv, x)
        of_conv = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    else:
        of_conv = geometry(conv)
    return atrous_conv2d(
        x, weight, bias, scale=scale, shift=shift, activation=activation, residual=residual,
        **of_conv,
    )  # fmt: skip
