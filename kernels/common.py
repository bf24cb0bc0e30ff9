"""What the kernels of every family ask before a launch: which GPU it is, how exact products are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch

from fastseg._core.float32_precision import tf32_in_convolutions


class Device(NamedTuple):
    """What a launch is planned for.

    Attributes:
        architecture: the name of the oldest GPU with the same matrix instructions and no more
            shared memory: "sm_80", "sm_90" or "sm_100". Consumer GPUs are "sm_80".
        multiprocessors: the number of the GPU's multiprocessors.
        name: the product's name, or "" of none.
    """

    architecture: str
    multiprocessors: int
    name: str = ""


NO_GPU = Device("sm_80", 8)
"""What the interpreter plans for: few multiprocessors, so that small launches fill them too."""


def device_of(device: torch.device) -> Device:
    """The GPU of tensors on `device`, or NO_GPU."""
    return _gpu(device) if device.type == "cuda" else NO_GPU


@functools.cache
def _gpu(device: torch.device) -> Device:
    """A device of CUDA."""
    properties = torch.cuda.get_device_properties(device)
    architecture = {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(properties.major, "sm_80")
    return Device(architecture, properties.multi_processor_count, properties.name)


def precision_of(dtype: torch.dtype, allows_tf32: Callable[[], bool] = tf32_in_convolutions) -> str:
    """How a matrix product of tensors of `dtype` is computed.

    Args:
        dtype: the dtype of both factors.
        allows_tf32: the question whether torch's own kernel may round float32 to TF32.

    Returns:
        "16" for 16-bit tensors; for float32 "tf32", one product of factors rounded to TF32, or
        "tf32x3", three products that keep float32's accuracy.
    """
    if dtype != torch.float32:
        return "16"
    return "tf32" if allows_tf32() else "tf32x3"


def input_precision(precision: str) -> str:
    """What `tl.dot` is told for a precision; products of 16 bits ignore it."""
    return "tf32" if precision == "16" else precision
