"""Compiles csrc/cuda with g++ against the shim, into the temporary folder, once for each source."""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.native_build import folder_for, run

HERE = Path(__file__).parent
CSRC = HERE.parent.parent / "csrc"
TILES_PER_LAUNCH = 500  # small enough that the tests' tensors take several launches

FLAGS = (
    "-std=c++20 -O1 -g1 -ffp-contract=off -fPIC -fvisibility=hidden -DUSE_CUDA "
    "-DTORCH_TARGET_VERSION=0x020a000000000000 "
    f"-DFASTSEG_TILES_PER_LAUNCH={TILES_PER_LAUNCH} "
    "-Wall -Wextra -Wno-unknown-pragmas -Wno-class-memaccess -Wno-psabi"
).split()


def cuda_home() -> Path | None:
    """The CUDA toolkit, found as the build finds it (setup.py)."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    candidates += [Path(nvcc).resolve().parent.parent] if nvcc else []
    for home in candidates:
        if home and (Path(home) / "include/cuda_fp16.h").exists():
            return Path(home)
    return None


def library(sanitize: bool = False) -> Path:
    """Builds the ops' bindings and kernels for the CPU.

    Args:
        sanitize: with AddressSanitizer; the process must then have preloaded its runtime.
    """
    torch_dir = Path(torch.__file__).parent
    kernels = [*sorted((CSRC / "cuda").rglob("*.cu")), HERE / "self_test.cu"]
    sources = [*kernels, HERE / "bindings.cpp", HERE / "cuda_on_cpu.cpp"]
    flags = [*FLAGS, *(["-fsanitize=address"] if sanitize else [])]
    flags += [f"-I{CSRC}", f"-I{HERE}", "-isystem", str(cuda_home() / "include")]
    flags += ["-isystem", str(torch_dir / "include")]

    state = [*CSRC.glob("c*/**/*.*"), *HERE.glob("*.*")]
    options = [*flags, torch.__version__]
    target = folder_for("cuda-on-cpu", options, state) / "cuda_on_cpu.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, ThreadPoolExecutor() as pool:
        objects = [Path(scratch) / f"{s.stem}{s.suffix}.o" for s in sources]

        def compile_one(source: Path, out: Path) -> None:
            shim = ["-include", HERE / "cuda_on_cpu.h", "-x", "c++"] if source in kernels else []
            run(["g++", *flags, *shim, "-c", source, "-o", out])

        list(pool.map(compile_one, sources, objects))
        linked = Path(scratch) / target.name
        libraries = [f"-L{torch_dir / 'lib'}", "-ltorch", "-ltorch_cpu"]
        sanitizer = ["-fsanitize=address"] if sanitize else []
        run(["g++", "-shared", "-Wl,-Bsymbolic", *sanitizer, *objects, *libraries, "-o", linked])
        linked.rename(target)
    return target
