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

# A call for each access, which compiles in half the time that code in its place takes.
SANITIZER = ["-fsanitize=address", "--param", "asan-instrumentation-with-call-threshold=0"]
# g++ calls a function at each access to memory (trace_hooks.cpp).
ACCESSES = ["-fsanitize=thread", "--param", "tsan-distinguish-volatile=1"]

# How all sources of a library are compiled beside FLAGS, how its kernels are, and the namespace of
# its ops. What is counted are the accesses that an optimizing compiler leaves; for the others -Og
# compiles a third faster.
VARIANTS: dict[str, tuple[list[str], list[str], str]] = {
    "plain": ([], ["-Og", FEW_TILES], "fastseg_cuda_on_cpu"),
    "sanitized": (SANITIZER, ["-Og", FEW_TILES], "fastseg_cuda_on_cpu"),
    "traced": ([], ["-O1", *ACCESSES], "fastseg_cuda_traced"),
}

FLAGS = [
    *("-std=c++20", "-g1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
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


def flags() -> list[str]:
    """What every source is compiled with."""
    includes = [f"-I{CSRC}", f"-I{HERE}", "-isystem", str(cuda_home() / "include")]
    torch_headers = Path(torch.__file__).parent / "include"
    return [*FLAGS, *includes, "-isystem", str(torch_headers)]


def library(variant: str = "plain") -> Path:
    """Builds the ops' bindings and kernels for the CPU.

    Args:
        variant: a key of ``VARIANTS``: "sanitized" for a process that has preloaded
            AddressSanitizer's runtime, "traced" to count accesses to memory (tracing.py).
    """
    of_all, of_kernels, namespace = VARIANTS[variant]
    target = _folder("cuda-on-cpu", [*of_all, *of_kernels]) / f"cuda_on_cpu_{variant}.so"
    with alone(target.parent):
        if not target.exists():
            traced = variant == "traced"
            tells = ["-DCUDA_ON_CPU_TRACE"] if traced else []
            shim = [HERE / "cuda_on_cpu.cpp", *(HERE.glob("trace*.cpp") if traced else [])]
            of_shim = [*of_all, "-Og", *tells, f"-DCUDA_ON_CPU_OPS={namespace}"]
            _build(target, shim, of_shim, [*of_all, *of_kernels, *tells])
    return target


def _folder(name: str, options: list[str]) -> Path:
    state = [*CSRC.glob("c*/**/*.*"), *HERE.glob("*.[ch]*"), Path(__file__)]
    return folder_for(name, [*flags(), *options, torch.__version__], state)


def _bindings(of_all: list[str]) -> Path:
    """Compiles the ops' bindings, which take longest, once for the libraries that share them."""
    target = _folder("cuda-bindings-on-cpu", of_all) / "bindings.o"
    with alone(target.parent):
        if not target.exists():
            scratch = target.with_suffix(".new.o")
            run(["g++", *flags(), *of_all, "-Og", "-c", HERE / "bindings.cpp", "-o", scratch])
            scratch.rename(target)
    return target


def _build(target: Path, shim: list[Path], of_shim: list[str], of_kernels: list[str]) -> None:
    """Compiles the sources side by side and links them."""
    kernels = [*sorted((CSRC / "cuda").rglob("*.cu")), HERE / "self_test.cu"]
    of_all, *_ = VARIANTS[target.stem.removeprefix("cuda_on_cpu_")]
    torch_libraries = Path(torch.__file__).parent / "lib"
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, ThreadPoolExecutor() as pool:
        bindings = pool.submit(_bindings, of_all)
        # Precompiled: CUDA's headers take longer than most kernels.
        header = Path(scratch) / f"{SHIM.name}.gch"
        run(["g++", *flags(), *of_kernels, "-x", "c++-header", SHIM, "-o", header])

        def compile_one(source: Path) -> Path:
            out = Path(scratch) / f"{source.stem}{source.suffix}.o"
            options = of_shim
            if source in kernels:
                first = ["-iquote", scratch, "-include", SHIM.name, "-x", "c++"]
                options = [*of_kernels, *first]
            run(["g++", *flags(), *options, "-c", source, "-o", out])
            return out

        objects = [*pool.map(compile_one, [*shim, *kernels]), bindings.result()]
        linked = Path(scratch) / target.name
        libraries = [f"-L{torch_libraries}", "-ltorch", "-ltorch_cpu"]
        run(["g++", "-shared", "-Wl,-Bsymbolic", *of_all, *objects, *libraries, "-o", linked])
        linked.rename(target)
