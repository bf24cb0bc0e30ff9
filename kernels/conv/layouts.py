"""The memory layouts of images and weights: what a kernel reads, what its caller gets back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layout_of(x: Tensor) -> torch.memory_format:
    """channels_last if x (N, C, H, W) is, else contiguous."""
    return torch._prims_common.suggest_memory_format(x)


def channels_last(t: Tensor) -> Tensor:
    """The same tensor if it is channels_last, else a copy that is."""
    return t.contiguous(memory_format=torch.channels_last)


def empty_channels_last(like: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty channels_last tensor of `like`'s dtype and device."""
    return torch.empty(
        tuple(shape), dtype=like.dtype, device=like.device, memory_format=torch.channels_last
    )


def rows_aligned(t: Tensor, row: int) -> bool:
    """Whether t's rows of so many elements begin at multiples of 16 bytes."""
    return t.data_ptr() % 16 == 0 and row * t.element_size() % 16 == 0
