"""What GPUs there are, by NVIDIA's management library: CUDA itself is not initialised.

A process that initialised CUDA could not be forked any more, and fastseg asks as it is imported.
"""

from __future__ import annotations

import ctypes
from ctypes import byref
from typing import Any, NamedTuple


class Hardware(NamedTuple):
    """What a CUDA library has to fit.

    Attributes:
        cuda: the version of CUDA that the driver is for, such as (12, 4).
        capabilities: the GPUs' compute capabilities, such as (7, 5).
    """

    cuda: tuple[int, int]
    capabilities: tuple[tuple[int, int], ...]


class Failure(Exception):
    """A function of the library that does not do what it should."""


def _check(status: int) -> None:
    if status != 0:
        raise Failure(f"NVML's status is {status}")


def hardware() -> Hardware | None:
    """The machine's driver and GPUs, or None if there are none or nobody can tell."""
    try:
        return read(ctypes.CDLL("libnvidia-ml.so.1"))
    except (OSError, AttributeError, Failure):  # no such library, or one without these functions
        return None


def read(library: Any) -> Hardware:
    """The same of the loaded library.

    Raises:
        Failure: a function of it fails.
        AttributeError: it lacks a function.
    """
    _check(library.nvmlInit_v2())
    try:
        version, count = ctypes.c_int(), ctypes.c_uint()
        _check(library.nvmlSystemGetCudaDriverVersion_v2(byref(version)))
        _check(library.nvmlDeviceGetCount_v2(byref(count)))
        capabilities = []
        for index in range(count.value):
            device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
            _check(library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), byref(device)))
            _check(library.nvmlDeviceGetCudaComputeCapability(device, byref(major), byref(minor)))
            capabilities.append((major.value, minor.value))
    finally:
        library.nvmlShutdown()
    cuda = (version.value // 1000, version.value % 1000 // 10)
    return Hardware(cuda, tuple(capabilities))
