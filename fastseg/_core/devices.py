"""Devices by the names that commands take."""

from __future__ import annotations

import torch


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
