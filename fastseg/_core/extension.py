"""Loads the compiled libraries, knows why one is not loaded, and chooses the SIMD level."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from fastseg._core import nvml

_FOLDER = Path(__file__).parents[1]
SIMD_LEVELS = ("portable", "avx2", "avx512")

WHEN_SIMD_LEVEL_CHANGES: list[Callable[[], None]] = []
"""Functions that drop what was chosen for the previous SIMD level."""


def _load(name: str) -> tuple[ctypes.CDLL | None, str | None]:
    """Returns the library and None, or None and the reason why it is not loaded."""
    path = _FOLDER / name
    if not path.exists():
        return None, f"there is no {name}"
    try:
        if _is_cut_short(path):
            return None, f"{name} is damaged: its end is missing"
    except OSError as error:
        return None, f"{name} cannot be read: {error.strerror}"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        # The linker says why: a damaged file, another processor, or a symbol that torch lacks.
        reason = str(error.__cause__ or error).removeprefix(f"{path}: ")
        return None, f"{name} cannot be loaded: {reason}"
    return ctypes.CDLL(str(path)), None


def _is_cut_short(path: Path) -> bool:
    """Whether an ELF file is shorter than its header says; loading it could end in SIGBUS."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64:
        return True
    (table_offset,) = struct.unpack_from("<Q", header, 40)
    entry_size, entries = struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < table_offset + entry_size * entries


def _load_cuda() -> tuple[ctypes.CDLL | None, str | None]:
    if not (_FOLDER / "_C_cuda.so").exists():
        return _load("_C_cuda.so")
    if torch.version.cuda is None:
        return None, f"_C_cuda.so is there, but torch {torch.__version__} is a build without CUDA"
    try:
        build = build_info()
    except (OSError, ValueError):
        build = {}
    reason = misfit(build, nvml.hardware())
    return (None, reason) if reason else _load("_C_cuda.so")


def misfit(build: dict, hardware: nvml.Hardware | None) -> str | None:
    """Why each call of a CUDA library would fail on a machine, or None if none is known to.

    Args:
        build: what `build_info` returns.
        hardware: the machine's driver and GPUs, if they are known.
    """
    if hardware is None:
        return None
    nvcc = str(build.get("nvcc") or "")
    major = re.match(r"\d+", nvcc)
    if major and int(major[0]) > hardware.cuda[0]:
        driver = ".".join(map(str, hardware.cuda))
        return f"_C_cuda.so was built by CUDA {nvcc}, and the driver is for CUDA {driver}"
    archs = re.findall(r"\d+", str(build.get("cuda_archs"))) or ["80"]
    least = min(archs, key=int)
    gpus = [f"{major}{minor}" for major, minor in hardware.capabilities]
    if gpus and all(int(gpu) < int(least) for gpu in gpus):
        of_gpus = ", ".join(f"sm_{gpu}" for gpu in gpus)
        return f"_C_cuda.so is compiled for sm_{least} and later, and the GPU is {of_gpus}"
    return None


def warn() -> None:
    """Warns at the import of fastseg of a missing CPU library or an unknown FASTSEG_SIMD."""
    if CPU_MISSING:
        warnings.warn(
            f"{CPU_MISSING}: fastseg's ops run their slow references in plain PyTorch. "
            "'pip install .' in fastseg's source folder builds it; 'fastseg info' tells more.",
            RuntimeWarning,
            stacklevel=3,
        )
    level = os.environ.get("FASTSEG_SIMD", SIMD_LEVELS[0])
    if level not in SIMD_LEVELS:
        warnings.warn(
            f"FASTSEG_SIMD={level} is not one of {', '.join(SIMD_LEVELS)}: "
            "the processor's best is used.",
            RuntimeWarning,
            stacklevel=3,
        )


def build_info() -> dict:
    """Returns the tools that built the compiled libraries; empty if they were not built.

    Raises:
        OSError: the file with this information cannot be read.
        ValueError: the file is damaged.
    """
    path = _FOLDER / "_build_info.json"
    if not path.exists():
        return {}
    build = json.loads(path.read_text())
    if not isinstance(build, dict):
        raise ValueError(f"a {type(build).__name__} instead of a dict")
    return build


_cpu, CPU_MISSING = _load("_C.so")
_, CUDA_MISSING = _load_cuda()


def simd_level() -> str | None:
    """Returns the instruction set that the CPU kernels use; None without compiled kernels."""
    return None if _cpu is None else SIMD_LEVELS[_cpu.fastseg_simd_level()]


def is_intel() -> bool:
    """Whether the processor is one of Intel's; False without compiled kernels."""
    return _cpu is not None and bool(_cpu.fastseg_is_intel())


def available_simd_levels() -> list[str]:
    """Returns the instruction sets that were built and that this processor has."""
    if _cpu is None:
        return []
    return [n for i, n in enumerate(SIMD_LEVELS) if _cpu.fastseg_simd_level_available(i)]


@contextlib.contextmanager
def use_simd_level(level: str) -> Iterator[None]:
    """Makes the CPU kernels use another instruction set inside the block, in all threads.

    The environment variable FASTSEG_SIMD does the same for a whole process.

    Args:
        level: one of :func:`available_simd_levels`.

    Raises:
        ValueError: this processor or this build does not have the level.
    """
    if level not in available_simd_levels():
        raise ValueError(f"SIMD level {level!r} is not one of {available_simd_levels()}")
    before = _cpu.fastseg_simd_level()
    _set_simd_level(SIMD_LEVELS.index(level))
    try:
        yield
    finally:
        _set_simd_level(before)


def _set_simd_level(level: int) -> None:
    _cpu.fastseg_set_simd_level(level)
    for forget in WHEN_SIMD_LEVEL_CHANGES:
        forget()
