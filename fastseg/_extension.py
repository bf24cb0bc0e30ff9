"""Loads the compiled libraries and knows which backend runs an op, and why another does not."""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent
SIMD_LEVELS = ("portable", "avx2", "avx512")


def _load(name: str) -> tuple[ctypes.CDLL | None, str | None]:
    """The library and None, or None and why it is not loaded."""
    path = _FOLDER / f"{name}.so"
    if not path.exists():
        return None, "not built"
    try:
        torch.ops.load_library(str(path))
        return ctypes.CDLL(str(path)), None
    except OSError as error:
        return None, str(error).splitlines()[0]


def _load_cuda() -> tuple[ctypes.CDLL | None, str | None]:
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is a build without CUDA"
    library, reason = _load("_C_cuda")
    if library is None:
        return None, f"{reason}; build it with nvcc at hand (see the README)"
    return library, None


_cpu, CPU_MISSING = _load("_C")
_cuda, CUDA_MISSING = _load_cuda()


def build_info() -> dict:
    """What the compiled libraries were built with; empty if they were not built."""
    path = _FOLDER / "_build_info.json"
    return json.loads(path.read_text()) if path.exists() else {}


def backend(op: str, device: str) -> str:
    """The backend that runs an op here: "C++ (<SIMD level>)", "CUDA C++" or "reference".

    Args:
        op: a name in ``torch.ops.fastseg``.
        device: "cpu" or "cuda".
    """
    key = {"cpu": "CPU", "cuda": "CUDA"}[device]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastseg::{op}", key):
        return "reference"
    return f"C++ ({simd_level()})" if device == "cpu" else "CUDA C++"


def simd_level() -> str | None:
    """The instruction set that the CPU kernels use; None without compiled kernels."""
    return None if _cpu is None else SIMD_LEVELS[_cpu.fastseg_simd_level()]


def available_simd_levels() -> list[str]:
    """The instruction sets that were built and that this processor has."""
    if _cpu is None:
        return []
    return [n for i, n in enumerate(SIMD_LEVELS) if _cpu.fastseg_simd_level_available(i)]


@contextlib.contextmanager
def use_simd_level(level: str) -> Iterator[None]:
    """Makes the CPU kernels use another instruction set.

    For all threads; the environment variable FASTSEG_SIMD does the same for a whole process.

    Raises:
        ValueError: this processor or this build does not have it.
    """
    if level not in available_simd_levels():
        raise ValueError(f"SIMD level {level!r} is not one of {available_simd_levels()}")
    before = _cpu.fastseg_simd_level()
    _cpu.fastseg_set_simd_level(SIMD_LEVELS.index(level))
    try:
        yield
    finally:
        _cpu.fastseg_set_simd_level(before)
