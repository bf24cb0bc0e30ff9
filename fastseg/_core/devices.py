"""Devices by the names that commands take; whether a CUDA graph is being captured on one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling


def named_device(name: str) -> torch.device:
    """Returns the device of ``--device NAME``.

    Raises:
        ValueError: the name is not that of a device that torch sees.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name}: not a device; give cpu, cuda or cuda:1") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name}: torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def is_captured(t: Tensor) -> bool:
    """Whether what is done with t now becomes a part of a CUDA graph.

    Its results are there when the graph is replayed, not before, and each time anew.
    """
    if is_dynamo_compiling() or not t.is_cuda or not torch.cuda.is_initialized():
        return False
    if t.get_device() == torch.cuda.current_device():  # the other way takes longer
        return torch.cuda.is_current_stream_capturing()
    with torch.cuda.device_of(t):
        return torch.cuda.is_current_stream_capturing()
