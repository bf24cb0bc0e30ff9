"""Compiles the dense CRF's C++ core and its fuzzer with sanitizers, once for each source."""

from __future__ import annotations

import platform
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from tests.native_build import folder_for, run

HERE = Path(__file__).parent
CSRC = HERE.parents[2] / "csrc"
CORE = (
    "cpu/memory/kept_memory",
    "cpu/crf/lattice_mean_field_blur",
    "cpu/crf/lattice_mean_field_core",
    "cpu/crf/lattice_mean_field_passes",
    "cpu/crf/lattice_mean_field_terms",
    "cpu/crf/permutohedral_blur",
    "cpu/crf/permutohedral_filter_core",
    "cpu/crf/permutohedral_lattice_core",
    "cpu/simd/simd_level",
    "cpu/threads/crew",
    "cpu/crf/spatial_gaussian_filter_core",
    "host/crf/densecrf",
    "host/thread_pool",
)
KERNELS = ("lattice_mean_field", "permutohedral", "spatial_gaussian_filter")
X86 = platform.machine() in ("x86_64", "AMD64")
# As in setup.py, ascending.
LEVELS = {"portable": ""}
if X86:
    LEVELS["avx2"] = "-mavx2 -mfma -mf16c"
    LEVELS["avx512"] = (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512"
    )
# What is left out AddressSanitizer sees too, in its way; without it the build is a third shorter.
SANITIZERS = [
    "-fsanitize=address,undefined,float-cast-overflow",
    "-fno-sanitize=null,object-size,vptr,return,unreachable",
    "-fno-sanitize-recover=all",
]
# -Og compiles a third faster than -O1, and what it makes takes no longer.
FLAGS = ["-std=c++20", "-Og", "-g1", "-Wall", "-Wextra", "-Wno-psabi"] + ["-DFASTSEG_X86"] * X86


def sanitizers_missing() -> str | None:
    """Why nothing can be built here, or None."""
    program = "int main() { return 0; }"
    with tempfile.TemporaryDirectory() as folder:
        command = ["g++", *SANITIZERS, "-x", "c++", "-", "-o", f"{folder}/empty"]
        try:
            subprocess.run(command, input=program, text=True, capture_output=True, check=True)
            subprocess.run([f"{folder}/empty"], capture_output=True, check=True)
        except FileNotFoundError:
            return "there is no g++"
        except subprocess.CalledProcessError:
            return "g++ has no AddressSanitizer or UndefinedBehaviorSanitizer"
    return None


def fuzzer() -> Path:
    """The program of fuzz.cpp."""
    torch_headers = ["-isystem", str(Path(torch.__file__).parent / "include")]  # of simd.h
    flags = [*FLAGS, *SANITIZERS, f"-I{CSRC}", *torch_headers]
    folders = ("common", "cpu", "host")
    sources = [*(f for name in folders for f in CSRC.glob(f"{name}/**/*.*")), *HERE.glob("*.*")]
    target = folder_for("densecrf-fuzz", flags, sources) / "fuzz"
    if target.exists():
        return target
    core = [CSRC / f"{name}.cpp" for name in CORE]
    core += [HERE / f"{name}.cpp" for name in ("problems", "fuzz")]
    jobs = [(core, [])]
    for level, instructions in LEVELS.items():
        kernels = [s for s in CSRC.glob("cpu/crf/*_kernel.cpp") if s.name.startswith(KERNELS)]
        jobs.append((sorted(kernels), [*instructions.split(), f"-DFASTSEG_SIMD={level}"]))
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, ThreadPoolExecutor() as pool:
        objects = [Path(scratch) / f"{k}.o" for k in range(len(jobs))]

        def compile_one(job: tuple[list[Path], list[str]], out: Path) -> None:
            """Sources of the same flags at once, which read the headers that they share once."""
            parts, extra = job
            source = out.with_suffix(".cpp")
            # Kernels call what each fetches ahead by the same name.
            names = [f"#define kAhead kAhead{k}\n" for k in range(len(parts))]
            lines = [
                f'{n}#include "{p}"\n#undef kAhead\n' for n, p in zip(names, parts, strict=True)
            ]
            source.write_text("".join(lines))
            run(["g++", *flags, *extra, "-c", source, "-o", out])

        list(pool.map(compile_one, jobs, objects))
        program = Path(scratch) / target.name
        run(["g++", *SANITIZERS, *objects, "-pthread", "-o", program])
        program.rename(target)
    return target
