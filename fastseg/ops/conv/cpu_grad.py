"""The choice of a kernel for a convolution's gradients on the CPU, torch's where that wins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from fastseg._core import extension
from fastseg._core.conv2d import Conv2d, memory_format_of
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.formulas import compute_dtype
from fastseg._core.library import cpu_kernel
from fastseg.ops.conv.cpu_costs import (
    COSTS,
    GROUP_GRADIENT_CHANNELS,
    WEIGHT_GRADIENT_CHANNELS,
)
from fastseg.ops.conv.cpu_forms import by_layout
from fastseg.ops.conv.cpu_kernels import (
    depthwise_input_grad,
    depthwise_weight_grad,
    run_winograd,
    run_winograd_weight,
    winograd_weight,
)
from fastseg.ops.conv.cpu_onednn import has_onednn
from fastseg.ops.conv.cpu_plan import (
    is_depthwise,
    is_native,
    plan,
    prefers_planes,
    prefers_winograd,
    torch_wins_on_planes,
)
from fastseg.ops.conv.dense_conv2d_weight_grad import dense_conv2d_weight_grad
from fastseg.ops.conv.im2col_conv2d_grads import im2col_conv2d_input_grad, im2col_conv2d_weight_grad

run_dense_weight_grad = cpu_kernel(dense_conv2d_weight_grad)
run_im2col_input_grad = cpu_kernel(im2col_conv2d_input_grad)
run_im2col_weight_grad = cpu_kernel(im2col_conv2d_weight_grad)


def plan_input_grad(
    grad: Tensor, weight: Tensor, input_size: Sequence[int], conv: Conv2d
) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """Chooses how fastseg::atrous_conv2d_input_grad computes a call, whose arguments are checked.

    Args:
        grad: a tensor of the gradient's shape and dtype; its values are not read.
        weight: a tensor of the weight's shape and dtype; its values are not read.
        input_size: (H, W) of the convolution's input.
        conv: the geometry.

    Returns:
        A function of grad, the weight, and whether to keep what is prepared of the weight.
    """
    channels = weight.shape[1] * conv.groups
    if is_depthwise(channels, weight, conv):
        size = (*grad.shape[:2], *input_size)
        ours = partial(_depthwise_input_grad, input_size=input_size, conv=conv)
        undilated = conv.dilation == (1, 1)  # others take torch up to ten times as long
        if undilated and torch_wins_on_planes(size, grad.dtype, weight.shape[2:], conv, bare=True):
            by_torch = partial(_input_grad_by_torch, size=size, conv=conv)
            return partial(by_layout, planes=by_torch, channels_last=ours)
        return ours
    if prefers_winograd(grad, weight.transpose(0, 1), conv):
        return partial(_winograd_input_grad, conv=conv)
    by_torch = partial(_input_grad_by_torch, size=(grad.shape[0], channels, *input_size), conv=conv)
    of_group = weight.shape[0] // conv.groups
    few = conv.groups == 1 or of_group <= GROUP_GRADIENT_CHANNELS
    if few and conv.stride == (1, 1) and grad.dtype == torch.float32:
        reach = [d * (k - 1) for d, k in zip(conv.dilation, weight.shape[2:], strict=True)]
        padding = tuple(r - p for r, p in zip(reach, conv.padding, strict=True))
        geometry = conv._replace(padding=padding)
        filters = adjoint(weight.to("meta"), conv.groups)
        convolve = plan(grad, filters, geometry, "", bare=True)
        by_adjoint = partial(_adjoint_input_grad, groups=conv.groups, convolve=convolve)
        # torch computes the gradient of a 1x1 convolution with another library, at half the speed.
        if conv.groups == 1:
            return by_adjoint
        if prefers_planes(grad, filters, geometry):
            return partial(by_layout, planes=by_adjoint, channels_last=by_torch)
    if not _suits_columns(grad.dtype, conv) or is_native(grad.dtype):
        return by_torch
    by_columns = partial(_im2col_input_grad, input_size=input_size, conv=conv)
    if is_direct_in_channels_last(weight.shape, input_size, conv):
        return partial(by_layout, planes=by_columns, channels_last=by_torch)
    return by_columns


def _suits_columns(dtype: torch.dtype, conv: Conv2d) -> bool:
    """Whether gradients can be products with columns that keep up with torch's."""
    has_vectors = extension.simd_level() in COSTS
    return has_vectors and conv.groups == 1 and dtype != torch.float64


def is_direct_in_channels_last(
    weight_shape: Sequence[int], input_size: Sequence[int], conv: Conv2d
) -> bool:
    """Whether oneDNN has a kernel of its own for the input's gradient in channels_last.

    Elsewhere it makes a matrix product, whose bits depend on the number of threads.
    """
    whole = weight_shape[0] % 16 == 0 and weight_shape[1] % 16 == 0
    inside = all(p < n for p, n in zip(conv.padding, input_size, strict=True))
    return has_onednn() and whole and inside and conv.dilation == (1, 1)


def _im2col_input_grad(grad: Tensor, weight: Tensor, keep: bool, input_size, conv: Conv2d):
    out = run_im2col_input_grad(grad.float(), weight.float(), input_size, *conv)
    return out.to(grad.dtype)


def _depthwise_input_grad(grad: Tensor, weight: Tensor, keep: bool, input_size, conv: Conv2d):
    return depthwise_input_grad(grad, weight, input_size, conv)


def _input_grad_by_torch(grad: Tensor, weight: Tensor, keep: bool, size, conv: Conv2d) -> Tensor:
    return convolution_backward(grad, _empty_in_layout_of(grad, size), weight, conv, 0)


def _winograd_input_grad(grad: Tensor, weight: Tensor, keep: bool, conv: Conv2d) -> Tensor:
    fast, size = reduced_on_cpu(), grad.shape[2:]
    if keep:
        packed = winograd_weight(weight, size, conv.dilation, fast, adjoint=True)
    else:
        packed = run_winograd_weight(weight.float(), size, conv.dilation, fast, True)
    epilogue = (None, None, None, None, conv.dilation, fast, "")
    return run_winograd(grad.float(), packed, weight.shape[1], *epilogue).to(grad.dtype)


def _adjoint_input_grad(
    grad: Tensor, weight: Tensor, keep: bool, groups: int, convolve: Callable
) -> Tensor:
    if groups == 1 and weight.shape[2:] == (1, 1):
        # torch transposes a matrix block by block, but not a tensor of four dimensions.
        flipped = weight.flatten(1).t().contiguous()[:, :, None, None]
    else:
        flipped = adjoint(weight, groups).flip(2, 3).contiguous()
    return convolve(grad, flipped, None, None, None, None)


def adjoint(weight: Tensor, groups: int) -> Tensor:
    """Returns a weight (Co, Ci / groups, kh, kw) as (Ci, Co / groups, kh, kw)."""
    if groups == 1:
        return weight.transpose(0, 1)
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


def plan_weight_grad(
    x: Tensor, grad: Tensor, kernel_size: Sequence[int], conv: Conv2d
) -> Callable[[Tensor, Tensor], Tensor]:
    """Chooses how fastseg::atrous_conv2d_weight_grad computes a call, whose arguments are checked.

    Args:
        x: a tensor of the input's shape and dtype; its values are not read.
        grad: a tensor of the gradient's shape and dtype; its values are not read.
        kernel_size: (kh, kw).
        conv: the geometry.

    Returns:
        A function of x and grad.
    """
    size = (grad.shape[1], x.shape[1] // conv.groups, *kernel_size)
    geometry = (kernel_size, *conv[:3])
    if conv.groups > 1 and conv.groups == x.shape[1] == grad.shape[1]:
        return lambda x, grad: depthwise_weight_grad(x, grad, kernel_size, conv)
    native = is_native(x.dtype) and conv.dilation == (1, 1)
    many = x.shape[1] >= WEIGHT_GRADIENT_CHANNELS
    if many and conv.groups == 1 and x.dtype != torch.float64 and not native:
        return lambda x, grad: run_dense_weight_grad(x.float(), grad.float(), *geometry).to(x.dtype)
    if _suits_columns(x.dtype, conv) and not native:
        return partial(_im2col_weight_grad, kernel_size=kernel_size, conv=conv)
    return lambda x, grad: convolution_backward(grad, x, _empty_in_layout_of(x, size), conv, 1)


def _im2col_weight_grad(x: Tensor, grad: Tensor, kernel_size, conv: Conv2d) -> Tensor:
    out = run_im2col_weight_grad(x.float(), grad.float(), kernel_size, *conv)
    return out.to(x.dtype)


def _empty_in_layout_of(x: Tensor, size: Sequence[int]) -> Tensor:
    """Returns a tensor for torch's gradient, which reads its shape and would copy other layouts."""
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def convolution_backward(
    grad: Tensor, x: Tensor, weight: Tensor, conv: Conv2d, which: int
) -> Tensor:
    """Returns torch's gradient of x or of the weight.

    16-bit floats for which the processor has no instructions are computed in float32.

    Args:
        grad: the gradient of the output.
        x: the input; only its shape counts for its own gradient.
        weight: the weight; only its shape counts for its own gradient.
        conv: the geometry.
        which: 0 for the gradient of x, 1 for that of the weight.
    """
    layout = memory_format_of(grad)
    wide = grad.dtype if is_native(grad.dtype) else compute_dtype(grad.dtype)
    grad_wide, x, weight = (t.to(wide, memory_format=layout) for t in (grad, x, weight))
    mask = (which == 0, which == 1, False)
    grads = torch.ops.aten.convolution_backward(
        grad_wide, x, weight, None, *conv[:3], False, (0, 0), conv.groups, mask
    )
    return grads[which].to(grad.dtype).contiguous(memory_format=layout)
