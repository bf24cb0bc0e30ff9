"""Show what was built, what this machine has, and which backend runs each op."""

from __future__ import annotations

import argparse
import importlib.util
import platform

import torch

from fastseg._core import extension, prepared_calls
from fastseg._core.library import NAMES, backend
from fastseg._core.version import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds no arguments: `fastseg info` takes none."""


def run(options: argparse.Namespace) -> int:
    """Prints the report."""
    print("\n".join(report()))
    return 0


def report() -> list[str]:
    """Returns the lines that `fastseg info` prints."""
    lines = [
        f"fastseg     {__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"torch       {torch.__version__}, {torch.get_num_threads()} threads",
        f"built       {_build()}",
        f"CPU ops     {_cpu_ops()}",
        f"CUDA ops    {_loaded(extension.CUDA_MISSING)}",
        f"GPU         {_gpu()}",
        f"Triton      {_triton()}",
        "",
        f"{'op':<30} {'on CPU':<16} on CUDA",
    ]
    for name in NAMES:
        on_cpu, on_cuda = (backend(name, device) for device in ("cpu", "cuda"))
        lines.append(f"{name:<30} {on_cpu:<16} {on_cuda}")
    return lines


def _build() -> str:
    try:
        return _built(extension.build_info())
    except (OSError, ValueError) as error:
        return f"unknown: _build_info.json cannot be read ({error})"


def _built(build: dict) -> str:
    if not build:
        return "not yet: 'pip install .' in the source folder builds"
    cuda = "without CUDA"
    if build.get("nvcc"):
        archs = ", ".join(f"sm_{a}" for a in build.get("cuda_archs") or ())
        cuda = f"CUDA {build['nvcc']} for {archs}"
    torch_version, abi, compiler = (
        build.get(key, "unknown") for key in ("torch", "stable_abi", "compiler")
    )
    return f"with torch {torch_version} (stable ABI {abi}), {compiler}, {cuda}"


def _loaded(missing: str | None) -> str:
    return f"not loaded: {missing}" if missing else "loaded"


def _cpu_ops() -> str:
    loaded = _loaded(extension.CPU_MISSING)
    if extension.CPU_MISSING:
        return loaded
    levels = ", ".join(extension.available_simd_levels())
    return f"{loaded}, SIMD level {extension.simd_level()} (FASTSEG_SIMD chooses from {levels})"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    try:
        gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    except RuntimeError as error:  # the driver does not fit, or the GPU is lost
        return f"none that torch can use ({str(error).partition(chr(10))[0]})"
    return ", ".join(f"{gpu.name} (sm_{gpu.major}{gpu.minor})" for gpu in gpus)


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    try:
        import triton
    except Exception as error:  # it is built for another Python, or lacks a library
        return f"cannot be imported ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
    if prepared_calls.launcher is None:
        return f"{triton.__version__}, which launches every kernel: there is no fastseg._launch"
    return triton.__version__
