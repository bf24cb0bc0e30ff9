"""Convolution on the CPU by oneDNN, torch's own library, with prepared weights."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core import extension
from fastseg import reference
from fastseg._core.conv2d import Conv2d, in_layout_of
from fastseg._core.formulas import ACTIVATION_IN_PLACE
from fastseg._core.library import cpu_kernel
from fastseg.ops.conv.cpu_costs import FUSED_OUTPUTS
from fastseg.ops.conv.image_layout import in_layout, is_channels_last
from fastseg.ops.conv.prepared_weights import prepared

mkldnn = torch.ops.mkldnn
if torch.backends.mkldnn.is_available():
    run_onednn = cpu_kernel(mkldnn._convolution_pointwise.default)
    run_onednn_add = cpu_kernel(mkldnn._convolution_pointwise.binary)

NAN_TO_0 = {"relu": ("relu", []), "relu6": ("hardtanh", [0.0, 6.0])}
"""oneDNN's names and arguments of the activations in which it turns NaN into 0."""


def has_onednn() -> bool:
    """Whether torch has oneDNN and the user has not turned it off."""
    return torch._C._has_mkldnn and torch._C._get_mkldnn_enabled()


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


def torch_takes_onednn(shape: Sequence[int], weight_shape: Sequence[int], conv: Conv2d) -> bool:
    """Whether torch's convolution of float32 is oneDNN's whatever the number of threads.

    torch has other libraries, some with one thread alone, for 1x1 kernels and for one small image
    (ConvParams::use_mkldnn in its Convolution.cpp); their bits depend on the number of threads.
    """
    if math.prod(weight_shape[2:]) == 1 and conv.stride == (1, 1):
        return False
    large = math.prod(shape) > 20480 or min(weight_shape[2:]) > 3
    return conv.groups > 1 or shape[0] > 1 or large


def onednn_conv2d(
    x, weight, bias, scale, shift, residual, conv: Conv2d, activation, dtype=torch.float32
) -> Tensor:
    """Convolves in `dtype` and channels_last, where oneDNN is fast at every dilation.

    In contiguous layout its bits would depend on the number of threads. Its own ReLU and ReLU6 turn
    NaN into 0. They are fused only where x is small beside the output and finite; otherwise torch's
    activation runs after the convolution, in place.
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
        fused = activation in NAN_TO_0 and FUSED_OUTPUTS * x.numel() <= math.prod(shape)
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
        y = ACTIVATION_IN_PLACE[activation](y)
    return (y if channels_last else in_layout(y, False)).to(given)


def torch_conv2d(x, weight, bias, scale, shift, residual, conv: Conv2d, activation) -> Tensor:
    """Convolves by torch's convolution; what follows, for float32 alone, is done in place."""
    scale, bias, shift = (t if t is None else t.float() for t in (scale, bias, shift))
    y = F.conv2d(x, weight, bias, *conv)
    if scale is not None and shift is not None and is_channels_last(y):
        y = torch.addcmul(shift[:, None, None], y, scale[:, None, None])  # slow if contiguous
    else:
        if scale is not None:
            y.mul_(scale[:, None, None])
        if shift is not None:
            y.add_(shift[:, None, None])
    if residual is not None:
        y.add_(residual)
    return ACTIVATION_IN_PLACE[activation](y) if activation else y


def onednn_weight(
    x, weight, bias, scale, shift, conv: Conv2d, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, bool]:
    """Returns the weight times scale in oneDNN's form, ``bias * scale + shift``, and their sanity.

    The last is whether all of their values are finite.
    """

    def prepare():
        folded, offset = fold(weight, bias, scale, shift)
        packed = mkldnn._reorder_convolution_weight(
            folded.to(dtype), conv.padding, conv.stride, conv.dilation, conv.groups, x.shape
        )
        offset = None if offset is None else offset.to(dtype).contiguous()
        finite = all(is_finite(t) for t in (folded, offset) if t is not None)
        return packed, offset, finite

    return prepared(weight, (bias, scale, shift), ("oneDNN", conv, dtype), prepare)


def fold(
    weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Returns float32 ``weight * scale`` and ``bias * scale + shift``, None if there is none."""
    weight = weight.float()
    offset = None if bias is None else bias.float()
    if scale is not None:
        weight = weight * scale.float().view(-1, 1, 1, 1)
        offset = None if offset is None else offset * scale.float()
    if shift is not None:
        offset = shift.float() if offset is None else offset + shift.float()
    return weight, offset


def is_finite(t: Tensor) -> bool:
    """Whether no element is NaN or infinite; false too where the sum of huge ones overflows."""
    return math.isfinite(t.sum().item())
