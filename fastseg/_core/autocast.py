"""Casts of an op's tensors under torch.autocast, which are those of torch's own ops."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._C import _is_any_autocast_enabled
from torch.compiler import is_dynamo_compiling


def autocast_dtype(t: Tensor) -> torch.dtype | None:
    """Returns the dtype of convolutions on t's device under autocast; None where it is off."""
    if not (is_dynamo_compiling() or _is_any_autocast_enabled()):  # this takes a fifth of the time
        return None
    device = t.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Tensor | None]:
    """Casts floating-point tensors to the dtype, except float64, which autocast leaves alone."""
    return [
        t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)
        for t in tensors
    ]


@functools.cache
def unpools_in_float32(device: str) -> bool:
    """Whether max-unpooling is one of the ops that autocast runs in float32 on such a device."""
    key = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        "aten::max_unpool2d", key
    )
