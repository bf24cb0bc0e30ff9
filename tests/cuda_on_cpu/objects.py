"""What nvcc makes of csrc/cuda: object files, their resources and their instructions."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu.build import CSRC, cuda_home
from tests.native_build import folder_for, run

ARCHS = ("80", "90", "100")


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
    """The object file for ARCHS, made once for each state of the sources."""
    folder = folder_for("cuda", ARCHS, CSRC.glob("c*/**/*.[ch]*"))
    target = folder / f"{source.stem}.o"
    if not target.exists():
        codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS]
        scratch = target.with_suffix(f".{os.getpid()}.o")
        run([NVCC, "-O3", "-std=c++20", f"-I{CSRC}", *codes, "-c", source, "-o", scratch])
        scratch.rename(target)
    return target


def compiled_all(sources: Iterable[Path] | None = None) -> list[Path]:
    """The object files of these sources, by default of all kernels."""
    sources = sorted(sources or (CSRC / "cuda").rglob("*.cu"))
    with ThreadPoolExecutor() as pool:
        return list(pool.map(compiled, sources))


def dump(objects: Iterable[Path], *options: str) -> str:
    """What cuobjdump says of the object files."""
    texts = [
        subprocess.run([CUOBJDUMP, *options, o], capture_output=True, text=True, check=True).stdout
        for o in objects
    ]
    return "".join(texts)


def bodies(sass: str) -> dict[str, str]:
    """Instructions of each function, by its mangled name."""
    parts = re.split(r"\s+Function : (\w+)\n", sass)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))
