"""Compiles csrc/cuda with g++ against the shim, into the temporary folder, once for each source."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.native_build import alone, folder_for, run

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
SHIM = HERE / "cuda_on_cpu.h"
# Small enough that the tests' tensors take several launches.
FEW_TILES = "-DFASTSEG_TILES_PER_LAUNCH=500"

# How a library is compiled beside FLAGS, and the namespace of its ops.
VARIANTS: dict[str, tuple[list[str], str]] = {
    "plain": ([FEW_TILES], "fastseg_cuda_on_cpu"),
    "sanitized": ([FEW_TILES, "-fsanitize=address"], "fastseg_cuda_on_cpu"),
    "traced": (["-DCUDA_ON_CPU_TRACE"], "fastseg_cuda_traced"),
}
# Of the kernels alone: g++ calls a function at each access to memory (trace_hooks.cpp).
ACCESSES = ["-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"]

FLAGS = [
    *("-std=c++20", "-O1", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
    *("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
    *("-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-class-memaccess", "-Wno-psabi"),
]


def cuda_home() -> Path | None:
    """The CUDA toolkit, found as the build finds it (setup.py)."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates += [Path(nvcc).resolve().parent.parent] if nvcc else []
    for home in candidates:
        if home and (Path(home) / "include/cuda_fp16.h").exists():
            return Path(home)
    return None


def flags_of(namespace: str) -> list[str]:
    """What every source is compiled with, its ops in that namespace."""
    includes = [f"-I{CSRC}", f"-I{HERE}", "-isystem", str(cuda_home() / "include")]
    torch_headers = Path(torch.__file__).parent / "include"
    return [*FLAGS, f"-DCUDA_ON_CPU_OPS={namespace}", *includes, "-isystem", str(torch_headers)]


def library(variant: str = "plain") -> Path:
    """Builds the ops' bindings and kernels for the CPU.

    Args:
        variant: a key of ``VARIANTS``: "sanitized" for a process that has preloaded
            AddressSanitizer's runtime, "traced" to count accesses to memory (tracing.py).
    """
    more, namespace = VARIANTS[variant]
    kernels = [*sorted((CSRC / "cuda").rglob("*.cu")), HERE / "self_test.cu"]
    traces = [*HERE.glob("trace*.cpp")] if variant == "traced" else []
    # The bindings take longest.
    sources = [HERE / "bindings.cpp", HERE / "cuda_on_cpu.cpp", *traces, *kernels]
    flags = [*flags_of(namespace), *more]

    state = [*CSRC.glob("c*/**/*.*"), *HERE.glob("*.[ch]*"), Path(__file__)]
    options = [*flags, torch.__version__]
    target = folder_for("cuda-on-cpu", options, state) / f"cuda_on_cpu_{variant}.so"
    with alone(target.parent):
        if not target.exists():
            _build(target, sources, kernels, flags, variant)
    return target


def _build(
    target: Path, sources: list[Path], kernels: list[Path], flags: list[str], variant: str
) -> None:
    """Compiles the sources side by side and links them."""
    more, _ = VARIANTS[variant]
    torch_libraries = Path(torch.__file__).parent / "lib"
    of_kernels = [*flags, *(ACCESSES if variant == "traced" else [])]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, ThreadPoolExecutor() as pool:
        objects = [Path(scratch) / f"{s.stem}{s.suffix}.o" for s in sources]
        # Precompiled: CUDA's headers take longer than most kernels.
        shim = Path(scratch) / f"{SHIM.name}.gch"
        run(["g++", *of_kernels, "-x", "c++-header", SHIM, "-o", shim])

        def compile_one(source: Path, out: Path) -> None:
            if source in kernels:
                first = ["-iquote", scratch, "-include", SHIM.name, "-x", "c++"]
                run(["g++", *of_kernels, *first, "-c", source, "-o", out])
            else:
                run(["g++", *flags, "-c", source, "-o", out])

        list(pool.map(compile_one, sources, objects))
        linked = Path(scratch) / target.name
        libraries = [f"-L{torch_libraries}", "-ltorch", "-ltorch_cpu"]
        run(["g++", "-shared", "-Wl,-Bsymbolic", *more, *objects, *libraries, "-o", linked])
        linked.rename(target)
