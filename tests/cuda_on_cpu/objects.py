"""What nvcc makes of csrc/cuda: kernels for a GPU, their resources and their instructions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu.build import CSRC, cuda_home
from tests.native_build import folder_for, run

ARCHS = ("80", "90", "100")
CODES = (
    "-gencode=arch=compute_80,code=[sm_80,sm_90]",
    "-gencode=arch=compute_100,code=[sm_100,compute_100]",
)
"""nvcc's options for ARCHS, those of setup.py."""


def tool(name: str) -> str | None:
    """A tool of the toolkit, or that which comes with Triton."""
    if found := shutil.which(name, path=f"{cuda_home()}/bin"):
        return found
    try:
        import triton
    except ImportError:
        return None
    return shutil.which(name, path=f"{Path(triton.__file__).parent}/backends/nvidia/bin")


NVCC = cuda_home() and shutil.which("nvcc", path=f"{cuda_home()}/bin")
CUOBJDUMP = tool("cuobjdump")


def compiled(source: Path) -> Path:
    """The kernels of a source for ARCHS, without host code, once for each state of the sources."""
    folder = folder_for("cuda", CODES, CSRC.glob("c*/**/*.[ch]*"))
    target = folder / f"{source.stem}.fatbin"
    if not target.exists():
        scratch = target.with_suffix(f".{os.getpid()}.fatbin")
        options = ["-O3", "-std=c++20", "-lineinfo", f"-I{CSRC}"]
        run([NVCC, *options, *CODES, "-fatbin", source, "-o", scratch])
        scratch.rename(target)
    return target


def cubin(source: Path, arch: str) -> Path:
    """The kernels of a source for one of ARCHS, with the lines that they come from."""
    kernels = compiled(source)
    target = kernels.with_suffix(f".sm_{arch}.cubin")
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=kernels.parent) as scratch:
            command = [CUOBJDUMP, "--extract-elf", f"sm_{arch}.cubin", kernels]
            subprocess.run(command, cwd=scratch, check=True, capture_output=True)
            (found,) = Path(scratch).iterdir()
            found.rename(target)
    return target


def compiled_all(sources: Iterable[Path] | None = None) -> list[Path]:
    """The files of kernels of these sources, by default of all."""
    sources = sorted(sources or (CSRC / "cuda").rglob("*.cu"))
    with ThreadPoolExecutor() as pool:
        return list(pool.map(compiled, sources))


def dump(objects: Iterable[Path], *options: str) -> str:
    """What cuobjdump says of these files."""
    texts = [
        subprocess.run([CUOBJDUMP, *options, o], capture_output=True, text=True, check=True).stdout
        for o in objects
    ]
    return "".join(texts)


def bodies(sass: str) -> dict[str, str]:
    """Instructions of each function, by its mangled name."""
    parts = re.split(r"\s+Function : (\w+)\n", sass)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
