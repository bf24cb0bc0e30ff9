"""Builds fastseg's three shared objects through one ninja graph, without importing torch.

``_C``       the CPU ops, on LibTorch's stable ABI; kernels once for each SIMD level
``_C_cuda``  the CUDA ops, wherever nvcc is found, also beside a CPU-only torch
``_host``    numpy functions by pybind11, without torch

Settings, all environment variables:
  FASTSEG_CUDA        auto (default): build _C_cuda if nvcc is there; 0: never; 1: fail without
                      nvcc; registry: have pip install nvcc for the build (13.0, about 270 MB)
  CUDA_HOME           the CUDA toolkit to use
  FASTSEG_CUDA_ARCHS  default 80;86;89;90;100;120, PTX of the last one beside them
  FASTSEG_TORCH_DIR   torch's package folder, if it is not in the target environment
  CXX                 the C++20 compiler, default g++
"""

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI = (2, 10)  # the oldest torch whose stable ABI has all that csrc/ uses
CUDA = os.environ.get("FASTSEG_CUDA", "auto")
ARCHS = os.environ.get("FASTSEG_CUDA_ARCHS", "80;86;89;90;100;120").replace(",", ";").split(";")
CXX = os.environ.get("CXX", "g++")
X86 = platform.machine() in ("x86_64", "AMD64")
REGISTRY_NVCC = [
    f"nvidia-{part}==13.0.*"
    for part in ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")
]
# Ascending: where two objects hold the same inline function, the linker keeps the first one, which
# must run on the oldest processor.
SIMD_FLAGS = {"portable": ""}
if X86:
    SIMD_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    SIMD_FLAGS["avx512"] = (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512"
    )


def site_packages() -> list[Path]:
    """The build environment's, then the target's, which build isolation hides from sys.path."""
    names = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    spec = importlib.util.find_spec("setuptools")
    if spec and spec.origin:
        names.append(str(Path(spec.origin).parent.parent))
    names += [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    return [Path(n) for n in dict.fromkeys(names)]


def find_torch() -> Path:
    """Torch's package folder: its headers and libraries are all that the build needs of it."""
    spec = importlib.util.find_spec("torch")
    candidates = [Path(d) for d in [os.environ.get("FASTSEG_TORCH_DIR")] if d]
    candidates += [Path(spec.origin).parent] if spec and spec.origin else []
    candidates += [p / "torch" for p in site_packages()]
    for folder in candidates:
        if (folder / "include/torch/csrc/stable/library.h").exists():
            return folder
    raise SystemExit(
        "fastseg: no torch >= 2.11 in this environment; run 'pip install torch' first, "
        "or set FASTSEG_TORCH_DIR to its package folder."
    )


def find_nvcc() -> Path | None:
    """Nvcc of CUDA_HOME, the system or the registry's packages; None: build for the CPU only."""
    if CUDA == "0":
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    candidates = [Path(h) / "bin/nvcc" for h in homes if h]
    candidates += [Path("/usr/local/cuda/bin/nvcc")]
    candidates += [Path(p) for p in [shutil.which("nvcc")] if p]
    candidates += [p / "nvidia/cu13/bin/nvcc" for p in site_packages()]
    nvcc = next((c for c in candidates if c.exists()), None)
    if nvcc is None and CUDA in ("1", "registry"):
        raise SystemExit(
            f"fastseg: FASTSEG_CUDA={CUDA}, but there is no nvcc; set CUDA_HOME to a toolkit, "
            f"or 'pip install {' '.join(REGISTRY_NVCC)}'."
        )
    if nvcc is None:
        print("fastseg: no nvcc found, building for the CPU only (see FASTSEG_CUDA in setup.py).")
    return nvcc


class OpLibrary(Extension):
    """A shared object that registers torch ops as it is loaded: no Python symbol in it."""


class Graph:
    """The lines of one build.ninja."""

    def __init__(self, folder: Path, torch: Path, nvcc: Path | None):
        self.folder = folder
        self.torch = torch
        self.nvcc = nvcc
        target = f"0x{STABLE_ABI[0]:02x}{STABLE_ABI[1]:02x}000000000000"
        common = "-O3 -std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi"
        # GCC's own AVX-512 headers trip these two warnings.
        common += " -Wno-uninitialized -Wno-maybe-uninitialized"
        common += f" -I{ROOT}/csrc -isystem {torch}/include"
        if X86:
            common += " -DFASTSEG_X86"
        codes = [f"-gencode arch=compute_{a},code=sm_{a}" for a in ARCHS]
        codes.append(f"-gencode arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")
        self.lines = [
            f"cxx_flags = {common} -DTORCH_TARGET_VERSION={target}",
            "rule cxx",
            f"  command = {CXX} $cxx_flags $flags -MMD -MF $out.d -c $in -o $out",
            "  description = c++ $in $flags",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule nvcc",
            f"  command = {nvcc} -O3 -std=c++20 -Xcompiler -fPIC,-fvisibility=hidden "
            f"-I{ROOT}/csrc {' '.join(codes)} --threads 2 -MD -MF $out.d -c $in -o $out",
            "  description = nvcc $in",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {CXX} -shared -s $in -o $out $flags",
            "  description = link $out",
            "rule stub",
            "  command = echo 'extern \"C\" void aoti_torch_get_current_cuda_stream() {}' | "
            f"{CXX} -shared -fPIC -x c++ - -Wl,-soname,libtorch_cuda.so -o $out",
        ]

    def compile(self, source: str, flags: str = "", tag: str = "") -> Path:
        """Compiles one source, once for each tag."""
        target = self.folder / (source.replace("/", "_") + tag + ".o")
        rule = "nvcc" if source.endswith(".cu") else "cxx"
        self.lines += [f"build {target}: {rule} {ROOT / source}", f"  flags = {flags}"]
        return target

    def link(self, objects: list[Path], target: Path, flags: str, needs: Path | None = None):
        """Links one shared object; `needs` is built before it."""
        order = f" | {needs}" if needs else ""
        inputs = " ".join(map(str, objects))
        self.lines += [f"build {target}: link {inputs}{order}", f"  flags = {flags}"]

    def cpu_ops(self, target: Path):
        """_C: kernels (csrc/cpu/*_kernel.cpp) once for each SIMD level, the rest once."""
        kernels, rest = [], []
        for source in sources("csrc/cpu/*.cpp"):
            (kernels if source.endswith("_kernel.cpp") else rest).append(source)
        objects = [self.compile(s) for s in rest]
        for level, flags in SIMD_FLAGS.items():
            define = f"-DFASTSEG_SIMD={level}"
            objects += [self.compile(k, f"{flags} {define}", f".{level}") for k in kernels]
        self.link(objects, target, f"-L{self.torch}/lib -ltorch -ltorch_cpu -Wl,-z,defs")

    def cuda_ops(self, target: Path):
        """_C_cuda: the CUDA runtime is linked statically, torch's CUDA library resolved at load."""
        cuda = self.nvcc.resolve().parent.parent
        objects = [self.compile(s) for s in sources("csrc/cuda/*.cu")]
        flags = f"-DUSE_CUDA -isystem {cuda}/include"
        objects += [self.compile(s, flags) for s in sources("csrc/cuda/*.cpp")]
        libraries = [d for d in (cuda / "lib64", cuda / "lib") if d.exists()]
        link = " ".join(f"-L{d}" for d in libraries) + f" -L{self.torch}/lib"
        stub = None
        if not (self.torch / "lib/libtorch_cuda.so").exists():
            stub = self.folder / "libtorch_cuda.so"
            self.lines.append(f"build {stub}: stub")
            link += f" -L{self.folder}"
        link += " -ltorch -ltorch_cpu -Wl,--no-as-needed -ltorch_cuda -Wl,--as-needed"
        self.link(objects, target, f"{link} -lcudart_static -ldl -lrt -lpthread -Wl,-z,defs", stub)

    def host(self, target: Path):
        """_host: one pybind11 module."""
        import pybind11

        flags = f"-I{sysconfig.get_path('include')} -isystem {pybind11.get_include()}"
        self.link([self.compile(s, flags) for s in sources("csrc/host/*.cpp")], target, "")


def sources(pattern: str) -> list[str]:
    """Paths relative to the root, sorted."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def torch_version(torch: Path) -> str:
    """The version beside the headers, read without importing torch."""
    found = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text())
    return found.group(1) if found else "unknown"


class NinjaBuild(build_ext):
    """build_ext that writes a ninja graph and runs it."""

    def get_ext_filename(self, fullname):
        """Op libraries serve every Python: they carry no ABI tag."""
        if isinstance(self.ext_map.get(fullname), OpLibrary):
            return os.path.join(*fullname.split(".")) + ".so"
        return super().get_ext_filename(fullname)

    def build_extensions(self):
        """Builds what changed."""
        torch, nvcc = find_torch(), NVCC
        if shutil.which(CXX) is None:
            raise SystemExit(f"fastseg: no C++ compiler '{CXX}'; install g++ >= 11, or set CXX.")
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        graph = Graph(folder, torch, nvcc)
        targets = {e.name: Path(self.get_ext_fullpath(e.name)).resolve() for e in self.extensions}
        for target in targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        graph.cpu_ops(targets["fastseg._C"])
        graph.host(targets["fastseg._host"])
        if nvcc:
            graph.cuda_ops(targets["fastseg._C_cuda"])
        (folder / "build.ninja").write_text("\n".join(graph.lines) + "\n")
        subprocess.run([ninja(), "-C", str(folder)], check=True)
        self.write_build_info(targets["fastseg._C"].parent, torch, nvcc)

    def write_build_info(self, folder: Path, torch: Path, nvcc: Path | None):
        """What `fastseg info` tells of this build."""
        info = {
            "torch": torch_version(torch),
            "stable_abi": ".".join(map(str, STABLE_ABI)),
            "compiler": first_line(CXX, "--version"),
            "simd": list(SIMD_FLAGS),
            "nvcc": last_line(str(nvcc), "--version") if nvcc else None,
            "cuda_archs": ARCHS if nvcc else [],
        }
        text = json.dumps(info, indent=2) + "\n"
        folders = {folder}
        if self.inplace or self.editable_mode:
            folders.add(ROOT / "fastseg")
        for f in folders:
            (f / "_build_info.json").write_text(text)


def ninja() -> str:
    """The ninja of the build environment or the system."""
    try:
        from ninja import BIN_DIR

        return str(Path(BIN_DIR) / "ninja")
    except ImportError:
        return shutil.which("ninja") or "ninja"


def first_line(*command: str) -> str:
    """The first line that a command prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]


def last_line(*command: str) -> str:
    """The last line that a command prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[-1]


NVCC = find_nvcc() if CUDA != "registry" or importlib.util.find_spec("nvidia") else None
extensions = [
    OpLibrary("fastseg._C", sources("csrc/cpu/*.cpp")),
    Extension("fastseg._host", sources("csrc/host/*.cpp")),
]
if NVCC:
    extensions.append(OpLibrary("fastseg._C_cuda", sources("csrc/cuda/*.c*")))

setup(
    packages=[
        "fastseg",
        *(f"fastseg.{p.parent.name}" for p in sorted(ROOT.glob("fastseg/*/__init__.py"))),
        "fastseg.kernels",
    ],
    package_dir={"fastseg": "fastseg", "fastseg.kernels": "kernels"},
    package_data={"fastseg": ["py.typed", "_build_info.json", "weights/*"]},
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuild},
    setup_requires=REGISTRY_NVCC if CUDA == "registry" and NVCC is None else [],
)
