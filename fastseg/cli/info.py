"""Show what was built, what this machine has, and which backend runs each op; or a checkpoint."""

from __future__ import annotations

import argparse
import importlib.util
import platform
from collections.abc import Sequence

import torch

from fastseg._core import extension, prepared_calls
from fastseg._core.library import NAMES, backend
from fastseg._core.version import __version__
from fastseg.segment import Segmenter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg info`."""
    parser.add_argument(
        "--weights", metavar="FILE", help="show what this checkpoint takes and tells instead"
    )


def run(options: argparse.Namespace) -> int:
    """Prints the report, or what a checkpoint says."""
    lines = report() if options.weights is None else report_on(Segmenter.load(options.weights))
    print("\n".join(lines))
    return 0


def report_on(segmenter: Segmenter) -> list[str]:
    """Returns lines about a network: its classes, and the pictures that it takes."""
    form, parameters = segmenter.form, sum(p.numel() for p in segmenter.model.parameters())
    taken = f"{segmenter.channels} of 8 bits"
    if form is not None:
        taken = f"{form}, of which it takes {' '.join(map(str, form.bands))}"
    return [
        f"network     {segmenter.name}, {parameters / 1e6:.2f} million parameters",
        f"classes     {len(segmenter.classes)}: {', '.join(segmenter.classes)}",
        f"pictures    {taken}, short side {segmenter.short_side}",
        f"mean        {_numbers(segmenter.mean)}",
        f"std         {_numbers(segmenter.std)}",
    ]


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


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
