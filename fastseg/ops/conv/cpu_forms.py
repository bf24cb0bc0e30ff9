"""Forms in which cpu_plan.py gives convolutions to kernels: layouts, groups, taps and dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.conv2d import in_layout_of
from fastseg.ops.conv.cpu_kernels import im2col_conv2d, winograd_conv2d
from fastseg.ops.conv.cpu_onednn import torch_conv2d
from fastseg.ops.conv.image_layout import is_channels_last


def by_reference(x, weight, bias, scale, shift, residual, conv, activation):
    """Convolves in plain PyTorch, with the output in the layout of x."""
    y = reference.atrous_conv2d(x, weight, bias, scale, shift, residual, *conv, activation)
    return in_layout_of(x, y)


def by_layout(x, *others, planes, channels_last):
    """Returns what one of two functions returns, by the layout of their first argument."""
    return channels_last(x, *others) if is_channels_last(x) else planes(x, *others)


def by_live_tap(x, weight, *epilogue, run):
    """Convolves by a function for 1x1 kernels, with the tap in the middle."""
    return run(x, middle_of(weight), *epilogue)


def middle_of(weight: Tensor) -> Tensor:
    """Returns the weight of the tap in the middle, (Co, Ci, 1, 1)."""
    v, h = weight.shape[2] // 2, weight.shape[3] // 2
    return weight[:, :, v : v + 1, h : h + 1]


def by_groups(x, weight, *epilogue, conv, activation):
    """Convolves each group by itself as one matrix product."""
    *vectors, residual = epilogue
    count, of_group = conv.groups, conv._replace(groups=1)
    given = [x.chunk(count, 1), weight.chunk(count), *(_chunks(v, count, 0) for v in vectors)]
    groups = zip(*given, _chunks(residual, count, 1), strict=True)
    return in_layout_of(x, torch.cat([im2col_conv2d(*g, of_group, activation) for g in groups], 1))


def _chunks(t: Tensor | None, count: int, dim: int) -> Sequence[Tensor | None]:
    return [None] * count if t is None else t.chunk(count, dim)


def as_it_lies(x, weight, *epilogue, conv, activation, others):
    """Convolves with a weight that is not prepared where oneDNN reads it as fast.

    In channels_last it brings a weight into its form in the time in which a weight is compared with
    what was prepared, and few outputs take less time than to look that up.
    """
    if is_channels_last(x) and weight.is_contiguous(memory_format=torch.channels_last):
        return torch_conv2d(x, weight, *epilogue, conv, activation)
    return others(x, weight, *epilogue)


def planes_by_torch(x, weight, *epilogue, conv, activation):
    """Convolves contiguous float32 maps by torch's convolution."""
    # As it lies the weight might ask for another layout of the output.
    return torch_conv2d(x, weight.flatten().view(weight.shape), *epilogue, conv, activation)


def widened_winograd(x, weight, bias, scale, shift, residual, conv, activation):
    """Convolves maps of 16 bits in float32."""
    wide = None if residual is None else residual.float()
    y = winograd_conv2d(x.float(), weight, bias, scale, shift, wide, conv, activation)
    return y.to(x.dtype)
