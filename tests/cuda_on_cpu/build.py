"""Compiles csrc/cuda with g++ against the shim, into the temporary folder, once for each source."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

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
    kernels = [*sorted((CSRC / "cuda").glob("*.cu")), HERE / "self_test.cu"]
    sources = [*kernels, HERE / "bindings.cpp", HERE / "cuda_on_cpu.cpp"]
    flags = [*FLAGS, *(["-fsanitize=address"] if sanitize else [])]
    flags += [f"-I{CSRC}", f"-I{HERE}", "-isystem", str(cuda_home() / "include")]
    flags += ["-isystem", str(torch_dir / "include")]

    target = _folder(flags) / "cuda_on_cpu.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, ThreadPoolExecutor() as pool:
        objects = [Path(scratch) / f"{s.stem}{s.suffix}.o" for s in sources]

        def compile_one(source: Path, out: Path) -> None:
            shim = ["-include", HERE / "cuda_on_cpu.h", "-x", "c++"] if source in kernels else []
            _run(["g++", *flags, *shim, "-c", source, "-o", out])

        list(pool.map(compile_one, sources, objects))
        linked = Path(scratch) / target.name
        libraries = [f"-L{torch_dir / 'lib'}", "-ltorch", "-ltorch_cpu"]
        sanitizer = ["-fsanitize=address"] if sanitize else []
        _run(["g++", "-shared", "-Wl,-Bsymbolic", *sanitizer, *objects, *libraries, "-o", linked])
        linked.rename(target)
    return target


def _folder(flags: list[str]) -> Path:
    """One for each user and state of the sources."""
    digest = hashlib.sha256("\0".join([*flags, torch.__version__]).encode())
    for source in sorted([*CSRC.glob("c*/*"), *HERE.glob("*.*")]):
        digest.update(source.read_bytes())
    name = f"fastseg-cuda-on-cpu-{os.getuid()}-{digest.hexdigest()[:16]}"
    folder = Path(tempfile.gettempdir()) / name
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _run(command: list) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stderr}")
