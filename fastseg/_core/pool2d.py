"""The geometry of 2-D pooling, on which the ops, their fakes and the references agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastseg._core.tensor_checks import check_dense
from fastseg._core.window import LIMIT, Ints, pair

MAX_TAPS = 256
"""Number of positions that a uint8 code can tell apart."""


class Pool2d(NamedTuple):
    """Kernel size, stride, padding and dilation, each as (height, width)."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def is_2x2(self) -> bool:
        """Whether windows are 2x2 with stride 2: then four codes fit into a byte."""
        return self == ((2, 2), (2, 2), (0, 0), (1, 1))

    def pooled_size(self, size: Sequence[int], ceil_mode: bool) -> list[int]:
        """Returns the pooled (h, w) of a plane of `size` (H, W), by torch's rule."""
        pooled = []
        for n, k, s, p, d in zip(size, *self, strict=True):
            room = n + 2 * p - d * (k - 1) - 1 + (s - 1 if ceil_mode else 0)
            count = room // s + 1
            if ceil_mode and (count - 1) * s >= n + p:
                count -= 1  # the last window would start in the padding on the right
            pooled.append(count)
        return pooled


def pool2d(
    op: str, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints = 1
) -> Pool2d:
    """Checks the arguments of a pooling and returns them as pairs.

    Args:
        op: the op's name, with which an error begins.
        kernel_size: one integer or (height, width).
        stride: one integer or (height, width); None or an empty sequence is the kernel's size.
        padding: one integer or (height, width).
        dilation: one integer or (height, width).

    Raises:
        RuntimeError: an argument that torch's pooling refuses, or a window of more than 256
            positions.
    """
    kernel, strides, pads, dilations = windows(op, kernel_size, stride, padding, dilation)
    named = {"kernel_size": kernel, "stride": strides, "dilation": dilations}
    for name, value in named.items():
        torch._check(
            min(value) > 0 and max(value) < LIMIT,
            lambda n=name, v=value: f"{op}: {n} must be positive and below 2^30, got {v}",
        )
    torch._check(min(pads) >= 0, lambda: f"{op}: padding must not be negative, got {pads}")
    torch._check(max(pads) < LIMIT, lambda: f"{op}: padding must be below 2^30, got {pads}")
    for k, p, d in zip(kernel, pads, dilations, strict=True):
        torch._check(
            2 * p <= d * (k - 1) + 1,
            lambda: (
                f"{op}: padding must be at most half of the dilated kernel, got padding {pads},"
                f" kernel_size {kernel} and dilation {dilations}"
            ),
        )
    torch._check(
        kernel[0] * kernel[1] <= MAX_TAPS,
        lambda: (
            f"{op}: kernel_size {kernel} has more than the {MAX_TAPS} positions that a uint8 "
            "code can tell apart"
        ),
    )
    return Pool2d(kernel, strides, pads, dilations)


def windows(
    op: str, kernel_size: Ints, stride: Ints | None, padding: Ints, dilation: Ints = 1
) -> Pool2d:
    """Returns the arguments of a pooling, which have been checked, as pairs."""
    kernel = pair(op, "kernel_size", kernel_size)
    no_stride = stride is None or (not isinstance(stride, int) and len(stride) == 0)
    return Pool2d(
        kernel,
        kernel if no_stride else pair(op, "stride", stride),
        pair(op, "padding", padding),
        pair(op, "dilation", dilation),
    )


def check_image(op: str, name: str, x: Tensor, may_lack_channels: bool = False) -> None:
    """Raises RuntimeError unless x is dense, (N, C, H, W) or (C, H, W), empty at most in N.

    Args:
        op: the op's name, with which an error begins.
        name: the name of x in an error.
        x: the image.
        may_lack_channels: whether a (C, H, W) may be empty in C, which torch's unpooling allows.
    """
    check_dense(op, name, x)
    torch._check(
        x.dim() in (3, 4),
        lambda: f"{op}: {name} must be (N, C, H, W) or (C, H, W), got shape {tuple(x.shape)}",
    )
    for size in x.shape[-2:] if may_lack_channels and x.dim() == 3 else x.shape[-3:]:
        torch._check(
            size > 0,
            lambda: f"{op}: {name} must not be empty but for the batch, got shape {tuple(x.shape)}",
        )


def check_pooled(op: str, x: Tensor, pool: Pool2d, pooled: Sequence[int]) -> None:
    """Raises RuntimeError if a plane has no window."""
    for size in pooled:
        torch._check(
            size > 0,
            lambda: (
                f"{op}: x of {x.shape[-2]} x {x.shape[-1]} is too small for kernel_size "
                f"{pool.kernel_size}, padding {pool.padding} and dilation {pool.dilation}"
            ),
        )


def memory_format(x: Tensor) -> torch.memory_format:
    """Returns the layout of the outputs for an input x: channels_last or contiguous."""
    if x.dim() == 4:
        return torch._prims_common.suggest_memory_format(x)
    return torch.contiguous_format


def packed_layout(packed_dim: int) -> torch.memory_format:
    """Returns the layout of codes packed along packed_dim, and of what is computed from them."""
    return torch.channels_last if packed_dim == -3 else torch.contiguous_format


def codes_layout(codes: Tensor, packed_dim: int) -> torch.memory_format:
    """Returns the layout of codes that are packed along packed_dim, or not packed if it is 0."""
    return memory_format(codes) if packed_dim == 0 else packed_layout(packed_dim)


def empty_plane(
    like: Tensor, size: Sequence[int], layout: torch.memory_format, dtype: torch.dtype | None = None
) -> Tensor:
    """Returns an empty tensor of `like`'s batch and channels with planes of `size` (H, W)."""
    return torch.empty(
        (*like.shape[:-2], *size),
        dtype=like.dtype if dtype is None else dtype,
        device=like.device,
        memory_format=layout,
    )
