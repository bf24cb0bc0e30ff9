"""Images between contiguous and channels_last: an op at several times torch's speed."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.conv2d import memory_format_of
from fastseg._core.conv2d_checks import check_float32_image
from fastseg._core.library import cpu_kernel, define
from fastseg._core.vmap import by_batch


def _layout(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def _fake(x: Tensor, channels_last: bool) -> Tensor:
    check_float32_image("fastseg::image_layout", x)
    return torch.empty_like(x, memory_format=_layout(channels_last))


def _reference(x: Tensor, channels_last: bool) -> Tensor:
    return x.clone(memory_format=_layout(channels_last))


image_layout = define(
    "image_layout(Tensor x, bool channels_last) -> Tensor",
    reference=_reference,
    standard=_reference,
    fake=_fake,
    vmap=by_batch(0),
)
_run = cpu_kernel(image_layout)


def is_channels_last(x: Tensor) -> bool:
    """Whether the output for x is channels_last, by torch's rule, found faster for dense x."""
    if x.is_contiguous():
        return False
    if x.is_contiguous(memory_format=torch.channels_last):
        return True
    return memory_format_of(x) == torch.channels_last


def in_layout(x: Tensor, channels_last: bool) -> Tensor:
    """Returns x on the CPU in channels_last or contiguous layout; x itself if it has it."""
    layout = _layout(channels_last)
    if x.is_contiguous(memory_format=layout):
        return x
    if x.dtype == torch.float32:
        return _run(x, channels_last)
    return x.contiguous(memory_format=layout)
