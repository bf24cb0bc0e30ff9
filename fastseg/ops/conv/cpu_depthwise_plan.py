"""The choice between our depthwise kernels and torch's on the CPU, by the costs in cpu_costs.py."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core import extension
from fastseg._core.conv2d import Conv2d
from fastseg._core.remember import MOST_CALLS
from fastseg.ops.conv.cpu_costs import (
    COSTS,
    DEPTHWISE_BYTES,
    DEPTHWISE_PIXELS,
    DEPTHWISE_PRODUCTS,
    STRIDED_BYTES,
)
from fastseg.ops.conv.cpu_onednn import has_onednn, is_native, torch_takes_onednn


def is_depthwise(channels: int, weight: Tensor, conv: Conv2d) -> bool:
    """Whether each channel has one filter of its own."""
    return conv.groups > 1 and conv.groups == channels == weight.shape[0]


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
