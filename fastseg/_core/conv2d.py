"""The geometry of 2-D convolution, on which the ops, their fakes and the references agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg._core.window import Ints, pair

ACTIVATIONS = ("", "relu", "relu6", "leaky_relu", "silu", "hardswish")
"""Names of the activations at the end of an epilogue; "" is none, leaky_relu has slope 0.01."""


class Conv2d(NamedTuple):
    """Stride, padding and dilation, each as (vertical, horizontal), and the groups."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def output_size(self, size: Sequence[int], kernel_size: Sequence[int]) -> list[int]:
        """Returns the output's (h, w) for an input of `size` (H, W)."""
        geometry = zip(size, kernel_size, *self[:3], strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in geometry]


def resolve_padding(
    op: str, padding: Ints | str, kernel_size: Sequence[int], dilation: Ints
) -> tuple[int, int]:
    """Returns the padding as two integers.

    Args:
        op: the op's name, with which an error begins.
        padding: integers, "same", which keeps the size at stride 1, or "valid", which is 0.
        kernel_size: (kh, kw).
        dilation: distance between the kernel's taps.

    Raises:
        RuntimeError: another string, or a wrong number of integers.
    """
    if padding == "valid":
        return (0, 0)
    if isinstance(padding, str):
        torch._check(
            padding == "same",
            lambda: f'{op}: padding must be "same", "valid" or integers, got {padding!r}',
        )
        dilations = pair(op, "dilation", dilation)
        return tuple(d * (k // 2) for d, k in zip(dilations, kernel_size, strict=True))
    return pair(op, "padding", padding)


def is_bare(
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
    activation: str,
) -> bool:
    """Whether nothing follows the convolution."""
    return not activation and bias is scale is shift is residual is None


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The layout of what is computed from x: channels_last if x is, else contiguous."""
    return torch._prims_common.suggest_memory_format(x)


def empty_output(x: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Returns an empty (N, channels, h, w) of x's dtype and layout."""
    return _empty((x.shape[0], channels, *size), x)


def empty_weight(x: Tensor, grad: Tensor, kernel_size: Sequence[int], groups: int) -> Tensor:
    """Returns an empty (Co, Ci / groups, kh, kw) of x's dtype and layout, for a weight's gradient.

    Args:
        x: the convolution's input (N, Ci, H, W).
        grad: the gradient of its output (N, Co, h, w).
        kernel_size: (kh, kw).
        groups: the convolution's number of groups.
    """
    return _empty((grad.shape[1], x.shape[1] // groups, *kernel_size), x)


def _empty(shape: Sequence[int], x: Tensor) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format_of(x))


def in_layout_of(x: Tensor, out: Tensor) -> Tensor:
    """Returns `out` in channels_last if x is, else contiguous."""
    return out.contiguous(memory_format=memory_format_of(x))


def live_range(
    size: int, out: int, stride: int, padding: int, dilation: int, tap: int
) -> tuple[slice, slice]:
    """Returns the pixels of x that a tap reads, and the outputs for which it reads them.

    All arguments are those of one axis.

    Args:
        size: number of x's pixels.
        out: number of outputs.
        stride: distance between the first pixels of two neighbouring outputs.
        padding: number of zeros before x.
        dilation: distance between the kernel's taps.
        tap: the tap's index in the kernel.
    """
    offset = tap * dilation - padding
    first = max(0, -(offset // stride))  # the first i with i * stride + offset >= 0
    last = min(out, (size - 1 - offset) // stride + 1)
    if last <= first:
        return slice(0, 0), slice(0, 0)
    read = slice(first * stride + offset, (last - 1) * stride + offset + 1, stride)
    return read, slice(first, last)


def live_taps(size: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Returns the number of pairs of an output and a tap along an axis that read a pixel.

    Args:
        size: number of x's pixels.
        kernel: number of taps.
        stride: distance between the first pixels of two neighbouring outputs.
        padding: number of zeros on both sides of x.
        dilation: distance between the kernel's taps.
    """
    outputs = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    axis = (size, outputs, stride, padding, dilation)
    ranges = (live_range(*axis, tap)[1] for tap in range(kernel))
    return sum(live.stop - live.start for live in ranges)
