"""The build of fastseg's four shared objects by one ninja graph, without importing torch.

``_C``       the CPU ops, on LibTorch's stable ABI; kernels once for each SIMD level
``_C_cuda``  the CUDA ops, where nvcc is found and torch is a build with CUDA
``_host``    numpy functions by pybind11, without torch; of the CPU kernels what they call
``_launch``  launches of Triton's kernels, on Python's limited API; needs neither nvcc nor torch

Settings, all environment variables:
  FASTSEG_CUDA        auto (default): build _C_cuda if nvcc is there and torch can use it; 0: never;
                      1: also beside a CPU-only torch, and fail without nvcc; registry: have pip
                      install nvcc for the build (13.0, about 270 MB)
  CUDA_HOME           the CUDA toolkit to use, 12.0 or later
  FASTSEG_CUDA_ARCHS  default: those of 80;86;89;90;100;120 that nvcc knows; PTX for others
  FASTSEG_TORCH_DIR   torch's package folder, if it is not in the target environment
  CXX                 the C++20 compiler, default g++
  LDFLAGS             further flags of every link
  MAX_JOBS            files compiled at once, default all processors
"""

import json
import os
import platform
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from shlex import quote, split
from subprocess import getoutput

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
STABLE_ABI = "2.11"  # the oldest torch whose stable ABI has all that csrc/ uses
OLDEST_TORCH = "2.11"  # pyproject.toml has the same
OLDEST_CUDA = "12.0"  # the first with C++20
LIMITED_API = "0x030A0000"  # Python 3.10, as pyproject.toml has it
CUDA = os.environ.get("FASTSEG_CUDA", "auto")
CUDA_ARCHS = ("80", "86", "89", "90", "100", "120")
CXX = os.environ.get("CXX", "g++")
LDFLAGS = os.environ.get("LDFLAGS", "")
BINDINGS = "cpu/bindings.h"
CORE = "cpu/core.h"
KERNELS = "cpu/kernels.h"
X86 = platform.machine() in ("x86_64", "AMD64")
REGISTRY_NVCC = [
    f"nvidia-{p}==13.0.*" for p in ("cuda-nvcc", "nvvm", "cuda-crt", "cuda-runtime", "cuda-cccl")
]
# The order is ascending: where two objects hold the same inline function, the linker keeps the
# first one, which must run on the oldest processor.
SIMD_FLAGS = {"portable": ""}
if X86:
    # Processors without AVX2 are of before 2013: fast to compile matters more than fast to run.
    SIMD_FLAGS["portable"] = "-O1"
    SIMD_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    SIMD_FLAGS["avx512"] = (
        "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512"
    )

# These kernels are written in vectors throughout: the compiler finds no loop that would gain from
# being vectorised, and takes up to a third longer to say so.
VECTORS_ONLY = ("max_pool2d", "lattice_mean_field", "permutohedral_simplex")


def site_packages() -> list[Path]:
    """Returns the build environment's folders, then the target's, which build isolation hides."""
    target = [sysconfig.get_path(kind) for kind in ("platlib", "purelib")]
    if sys.prefix == sys.base_prefix or sees_system_packages():
        base = {"base": sys.base_prefix, "platbase": sys.base_prefix}
        target += [sysconfig.get_path("platlib", vars=base), site.getusersitepackages()]
    return [Path(p) for p in dict.fromkeys([*sys.path, *target]) if p]


def sees_system_packages() -> bool:
    """Whether this is a virtual environment that has the packages of the system's Python too."""
    settings = Path(sys.prefix) / "pyvenv.cfg"
    pattern = r"^include-system-site-packages\s*=\s*true"
    return settings.exists() and bool(re.search(pattern, settings.read_text(), re.M | re.I))


def torch_folder() -> Path | None:
    """Returns torch's package folder or None; the build needs only its headers and libraries."""
    given = os.environ.get("FASTSEG_TORCH_DIR")
    candidates = [Path(given)] if given else [p / "torch" for p in site_packages()]
    return next((c for c in candidates if (c / "version.py").exists()), None)


def find_torch() -> Path:
    """Returns torch's package folder, or ends the build with advice."""
    folder = torch_folder()
    if folder is None:
        given = os.environ.get("FASTSEG_TORCH_DIR")
        raise SystemExit(
            f"fastseg: no torch in {given or 'this environment'}; 'pip install torch' first, "
            "then 'pip install .' (or set FASTSEG_TORCH_DIR to torch's package folder)."
        )
    version = torch_version(folder)
    if numbers(version) < numbers(OLDEST_TORCH):
        raise SystemExit(f"fastseg: torch {version} in {folder} is older than {OLDEST_TORCH}.")
    return folder


def further_requirements() -> list[str]:
    """Returns requirements of the build beside pyproject.toml's, for front ends that ask.

    It is torch where the target environment has none: pip and uv then build against the one that
    they install as fastseg's dependency.
    """
    if "egg_info" not in sys.argv:  # front ends run this command to ask
        return []
    torch = [] if torch_folder() else [f"torch>={OLDEST_TORCH}"]
    return torch + (REGISTRY_NVCC if CUDA == "registry" else [])


def check_tools() -> None:
    """Stops a build that lacks its tools, which front ends install unless told not to."""
    missing = [name for name in ("ninja", "pybind11") if find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"fastseg: without build isolation the build needs {' and '.join(missing)}; "
            f"'pip install setuptools {' '.join(missing)}' first."
        )


def torch_version(torch: Path) -> str:
    """Returns the version beside the headers, read without importing torch."""
    found = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text())
    return found.group(1) if found else "0.0"


def find_nvcc() -> Path | None:
    """Returns nvcc of CUDA_HOME, the system or the registry's packages, or None."""
    if CUDA not in ("0", "1", "auto", "registry"):
        raise SystemExit(f"fastseg: FASTSEG_CUDA={CUDA} is not one of 0, 1, auto, registry.")
    homes = [h for h in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if h]
    system = [*(f"{home}/bin/nvcc" for home in homes), shutil.which("nvcc") or ""]
    registry = [p / "nvidia/cu13/bin/nvcc" for p in site_packages()]
    candidates = {"0": [], "registry": registry}.get(CUDA, system + registry)
    for nvcc in map(Path, candidates):
        if nvcc.is_file() and numbers(nvcc_version(nvcc)) >= numbers(OLDEST_CUDA):
            return nvcc
    return None


def check_nvcc(nvcc: Path | None) -> None:
    """Stops a build that lacks the nvcc it was told to use."""
    if nvcc is None and CUDA in ("1", "registry"):
        raise SystemExit(
            f"fastseg: FASTSEG_CUDA={CUDA}, but there is no nvcc {OLDEST_CUDA} or later; "
            f"set CUDA_HOME to a toolkit, or 'pip install {' '.join(REGISTRY_NVCC)}'."
        )
    if CUDA == "auto" and not BUILDS_CUDA:
        why = "no nvcc found" if nvcc is None else "torch is a build without CUDA"
        print(f"fastseg: {why}, building for the CPU only (see FASTSEG_CUDA in setup.py).")


def is_cpu_only(torch: Path) -> bool:
    """Tells whether a torch is a build without CUDA, which can load no CUDA ops."""
    return bool(re.search(r"^cuda\b[^=]*= None", (torch / "version.py").read_text(), re.M))


def nvcc_version(nvcc: Path) -> str:
    """Returns nvcc's version, such as "13.0"."""
    found = re.search(r"release ([\d.]+)", getoutput(f"{quote(str(nvcc))} --version"))
    return found.group(1) if found else "0.0"


def cuda_archs(nvcc: Path) -> list[str]:
    """Returns the compute capabilities to compile for, ascending."""
    if given := os.environ.get("FASTSEG_CUDA_ARCHS"):
        archs = given.replace(",", ";").split(";")
        return sorted(archs, key=lambda arch: (len(arch.rstrip("af")), arch))
    known = getoutput(f"{quote(str(nvcc))} --list-gpu-code").split()
    return [a for a in CUDA_ARCHS if f"sm_{a}" in known]


def cuda_codes(archs: list[str]) -> list[str]:
    """Returns nvcc's options for these compute capabilities, ascending.

    Its front end, which takes most of the time, compiles once for those before Blackwell and once
    from it on: 8.0 and 9.0 get the same instructions of it, 10.0 others. The last is PTX, too.
    """
    passes: dict = {}
    for arch in archs:  # one with a letter, such as 90a, is compiled by itself
        passes.setdefault(int(arch) < 100 if arch.isdigit() else arch, []).append(arch)
    codes = {members[0]: [f"sm_{arch}" for arch in members] for members in passes.values()}
    last = list(codes)[-1]
    codes[last].append(f"compute_{last}")
    return [f"-gencode=arch=compute_{a},code=[{','.join(c)}]" for a, c in codes.items()]


def cuda_home(nvcc: Path) -> Path:
    """Returns the toolkit's folder by nvcc's own account: on PATH may be a script around it."""
    found = re.search(r"_HERE_=(.+)", getoutput(f"{quote(str(nvcc))} --dryrun -E -x cu /dev/null"))
    return (Path(found.group(1)) if found else nvcc.resolve().parent).parent


def numbers(version: str) -> tuple[int, ...]:
    """Returns the first two numbers of a version: (2, 13) of "2.13.0+cpu"."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def sources(pattern: str) -> list[str]:
    """Returns the paths of a pattern relative to the root, sorted."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def is_binding(source: str) -> bool:
    """Tells whether a source includes torch: itself, or by a header of bindings."""
    pattern = r'^#include [<"](torch/|common/tensor_checks|common/\w+/\w+_ops\.h)'
    return bool(re.search(pattern, (ROOT / source).read_text(), re.M))


def escaped(path: Path) -> str:
    """Returns a path for a build line of ninja."""
    return re.sub(r"([$ :])", r"$\1", str(path))


class OpLibrary(Extension):
    """A shared object that registers torch ops as it is loaded, without a Python symbol."""


class LimitedModule(Extension):
    """A module on Python's limited API, which serves every Python."""


class Graph:
    """The lines of one build.ninja."""

    def __init__(self, folder: Path, torch: Path, nvcc: Path | None):
        self.folder = folder
        self.torch = torch
        self.nvcc = nvcc
        self.lines: list[str] = []
        target = "0x{:02x}{:02x}000000000000".format(*numbers(STABLE_ABI))
        include = f"-I{quote(f'{ROOT}/csrc')}"
        flags = "-O3 -std=c++20 -fPIC -fvisibility=hidden -Wall -Wextra -Wno-psabi"
        # GCC's own AVX-512 headers trip these two warnings.
        flags += " -Wno-uninitialized -Wno-maybe-uninitialized" + " -DFASTSEG_X86" * X86
        flags += f" {include}"
        # torch has a pybind11 of its own, which before 2.13 refuses its stable ABI.
        self.compiler("host", f"{CXX} {flags}")
        flags += f" -isystem {quote(f'{torch}/include')} -DTORCH_TARGET_VERSION={target}"
        self.compiler("cxx", f"{CXX} {flags}")
        if nvcc:
            codes = map(quote, cuda_codes(cuda_archs(nvcc)))
            host = f"-ccbin {quote(CXX)}" if "CXX" in os.environ else ""
            flags = f"-O3 -std=c++20 -Xcompiler -fPIC,-fvisibility=hidden {include} --threads 2"
            self.compiler("nvcc", f"{quote(str(nvcc))} {host} {flags} {' '.join(codes)}")
        self.lines += [
            "rule link",
            f"  command = {CXX} -shared -s $in -o $out {LDFLAGS} $flags",
            "  description = link $out",
            # An object in an archive is linked only if something calls it.
            "rule archive",
            "  command = rm -f $out && ar rcs $out $in",
            "  description = archive $out",
            "rule stub",
            "  command = echo 'extern \"C\" void aoti_torch_get_current_cuda_stream() {}' | "
            f"{CXX} -shared -fPIC -x c++ - -Wl,-soname,libtorch_cuda.so -o $out",
        ]

    def compiler(self, rule: str, command: str):
        """Adds a rule that compiles one source and notes every header it read."""
        self.lines += [
            f"rule {rule}",
            f"  command = {command} $flags -MD -MF $out.d -c $in -o $out",
            f"  description = {rule} $in $flags",
            "  depfile = $out.d",
            "  deps = gcc",
        ]

    def precompile(self, header: str, flags: str = "", tag: str = "") -> Path:
        """Precompiles a header for the sources that are compiled with the same flags."""
        target = self.folder / f"precompiled{tag}" / f"{header}.gch"
        target.parent.mkdir(parents=True, exist_ok=True)
        self.lines.append(f"build {escaped(target)}: cxx {escaped(ROOT / 'csrc' / header)}")
        self.lines.append(f"  flags = -w -x c++-header {flags}")
        return target

    def compile(
        self, source: str, flags: str = "", tag: str = "", first: Path | None = None
    ) -> Path:
        """Compiles one source, once for each tag, after a precompiled header that it includes."""
        target = self.folder / (source.replace("/", "_") + tag + ".o")
        rule = "nvcc" if source.endswith(".cu") else "cxx"
        if source.startswith(("csrc/host/", "csrc/launch/")):
            rule = "host"
        line = f"build {escaped(target)}: {rule} {escaped(ROOT / source)}"
        if first:
            line += f" | {escaped(first)}"
            # The precompiled header is found where the header itself is looked for first.
            header = Path(*first.with_suffix("").parts[-2:])
            flags += f" -iquote {quote(str(first.parents[1]))} -include {header}"
        self.lines += [line, f"  flags = {flags}"]
        return target

    def kernel(self, source: str, flags: str, level: str, header: Path) -> Path:
        """Compiles one kernel for a SIMD level."""
        if Path(source).name.removesuffix("_kernel.cpp") in VECTORS_ONLY:
            flags += " -fno-tree-loop-vectorize"
        return self.compile(source, flags, f".{level}", header)

    def link(self, objects: list[Path], target: Path, flags: str = "", needs: Path | None = None):
        """Links one shared object; `needs` is built before it."""
        line = f"build {escaped(target)}: link {' '.join(map(escaped, objects))}"
        self.lines += [line + (f" | {escaped(needs)}" if needs else ""), f"  flags = {flags}"]

    def cpu_ops(self, target: Path) -> list[Path]:
        """Links _C: kernels (csrc/cpu/**/*_kernel.cpp) once for each SIMD level, the rest once.

        Returns:
            The objects, from the oldest instruction set up.
        """
        kernels = sources("csrc/cpu/**/*_kernel.cpp")
        others = [s for s in sources("csrc/cpu/**/*.cpp") if s not in kernels]
        bindings, core = self.precompile(BINDINGS), self.precompile(CORE)
        objects = [self.compile(s, first=bindings if is_binding(s) else core) for s in others]
        vectors = []
        # The widest level takes longest to compile, and comes first: one of its kernels at the end
        # would leave all processors but one idle.
        for level, flags in reversed(SIMD_FLAGS.items()):
            flags = f"{flags} -DFASTSEG_SIMD={level}"
            header = self.precompile(KERNELS, flags, f".{level}")
            vectors = [*(self.kernel(k, flags, level, header) for k in kernels), *vectors]
        objects += vectors
        # libstdc++ comes first: torch's libraries happen to export some of its symbols, too.
        libraries = f"-lstdc++ -L{quote(f'{self.torch}/lib')} -ltorch -ltorch_cpu"
        self.link(objects, target, f"{libraries} -Wl,-z,defs")
        return objects

    def cuda_ops(self, target: Path):
        """Links _C_cuda: the CUDA runtime statically; torch's CUDA library is resolved at load."""
        cuda = cuda_home(self.nvcc)
        objects = [self.compile(s) for s in sources("csrc/cuda/**/*.cu")]
        flags = f"-DUSE_CUDA -isystem {quote(f'{cuda}/include')}"
        objects += [self.compile(s, flags) for s in sources("csrc/cuda/**/*.cpp")]
        stub = self.folder / "libtorch_cuda.so"
        self.lines.append(f"build {escaped(stub)}: stub")
        folders = [self.folder, self.torch / "lib", cuda / "lib64", cuda / "lib"]
        link = " ".join(f"-L{quote(str(f))}" for f in folders)
        link += " -ltorch -ltorch_cpu -Wl,--no-as-needed -ltorch_cuda -Wl,--as-needed"
        self.link(objects, target, f"{link} -lcudart_static -ldl -lrt -lpthread -Wl,-z,defs", stub)

    def host_objects(self) -> list[Path]:
        """Compiles what Python calls without torch.

        Sources in csrc/cpu that it calls do not include torch; those that bind them as ops do.
        """
        import pybind11

        includes = sysconfig.get_path("include"), pybind11.get_include()
        flags = " ".join(f"-isystem {quote(i)}" for i in includes)
        light = f"{flags} -O1"  # pybind11's templates, which call what takes time
        tag = f".{sys.implementation.cache_tag}"
        return [
            self.compile(s, light if s.endswith("module.cpp") else flags, tag)
            for s in sources("csrc/host/**/*.cpp")
        ]

    def host(self, target: Path, objects: list[Path], cpu_objects: list[Path]):
        """Links _host: one pybind11 module, with the objects of the CPU that it calls."""
        core = self.folder / "core.a"
        archived = " ".join(map(escaped, cpu_objects))
        # The archive does not need the module's objects. But ninja begins with what most depends
        # on, and these take long: begun last, they would leave all processors but one idle.
        waits_for = " ".join(map(escaped, objects))
        self.lines.append(f"build {escaped(core)}: archive {archived} || {waits_for}")
        self.link([*objects, core], target, "-pthread")

    def launch(self, target: Path):
        """Links _launch, for the limited API of the oldest Python that fastseg supports."""
        flags = f"-isystem {quote(sysconfig.get_path('include'))} -DPy_LIMITED_API={LIMITED_API}"
        objects = [self.compile(s, flags) for s in sources("csrc/launch/**/*.cpp")]
        self.link(objects, target, "-ldl")


class NinjaBuild(build_ext):
    """A build_ext that writes a ninja graph and runs it."""

    def get_ext_filename(self, fullname):
        """Returns a file name without the Python's tag for what serves every Python."""
        extension = self.ext_map.get(fullname)
        if isinstance(extension, OpLibrary):
            return os.path.join(*fullname.split(".")) + ".so"
        if isinstance(extension, LimitedModule):
            return os.path.join(*fullname.split(".")) + ".abi3.so"
        return super().get_ext_filename(fullname)

    def build_extensions(self):
        """Builds what changed."""
        check_tools()
        check_nvcc(NVCC)
        if shutil.which(split(CXX)[0]) is None:
            raise SystemExit(f"fastseg: no C++ compiler '{CXX}'; install g++ >= 11, or set CXX.")
        # All ways to build share it, and all Pythons: of their headers only _host's objects know.
        # An editable install's own folder is thrown away afterwards.
        folder = ROOT / "build" / "ninja"
        targets = {e.name: Path(self.get_ext_fullpath(e.name)).resolve() for e in self.extensions}
        folder.mkdir(parents=True, exist_ok=True)
        graph = Graph(folder, find_torch(), NVCC if BUILDS_CUDA else None)
        host_objects = graph.host_objects()
        cpu_objects = graph.cpu_ops(targets["fastseg._C"])
        graph.host(targets["fastseg._host"], host_objects, cpu_objects)
        graph.launch(targets["fastseg._launch"])
        if BUILDS_CUDA:
            graph.cuda_ops(targets["fastseg._C_cuda"])
        (folder / "build.ninja").write_text("\n".join(graph.lines) + "\n")
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count()))
        if subprocess.call([sys.executable, "-m", "ninja", "-C", str(folder), "-j", jobs]):
            raise SystemExit("fastseg: a file did not compile; the compiler's message is above.")
        self.complete(targets["fastseg._C"].parent)

    def copy_extensions_to_source(self):
        """Copies the objects to the source, for an editable install or --inplace."""
        super().copy_extensions_to_source()
        self.complete(ROOT / "fastseg")

    def complete(self, package: Path):
        """Adds the file from which `fastseg info` describes this build."""
        if not BUILDS_CUDA:  # one of an earlier build would not fit
            (package / "_C_cuda.so").unlink(missing_ok=True)
        info = {
            "torch": torch_version(find_torch()),
            "stable_abi": STABLE_ABI,
            "compiler": getoutput(f"{CXX} --version").splitlines()[0],
            "simd": list(SIMD_FLAGS),
            "nvcc": nvcc_version(NVCC) if BUILDS_CUDA else None,
            "cuda_archs": cuda_archs(NVCC) if BUILDS_CUDA else [],
        }
        (package / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


NVCC = find_nvcc()
TORCH = torch_folder()  # None where a front end has not installed it yet
BUILDS_CUDA = NVCC is not None and (CUDA != "auto" or TORCH is None or not is_cpu_only(TORCH))
if "dist_info" in sys.argv:  # the front end has not yet downloaded the dependencies
    find_torch()
extensions = [
    OpLibrary("fastseg._C", sources("csrc/cpu/**/*.cpp")),
    Extension("fastseg._host", sources("csrc/host/**/*.cpp")),
    LimitedModule("fastseg._launch", sources("csrc/launch/**/*.cpp")),
    *([OpLibrary("fastseg._C_cuda", sources("csrc/cuda/**/*.c*"))] if BUILDS_CUDA else []),
]

setup(
    # fastseg/kernels is a link to kernels/: with the folders laid out as the packages, an editable
    # install is a line in a .pth file, which type checkers read too.
    packages=[
        *(
            ".".join(p.parent.relative_to(ROOT).parts)
            for p in sorted(ROOT.glob("fastseg/**/__init__.py"))
            if "kernels" not in p.relative_to(ROOT).parts
        ),
        *(
            ".".join(("fastseg", *p.parent.relative_to(ROOT).parts))
            for p in sorted(ROOT.glob("kernels/**/__init__.py"))
        ),
    ],
    package_dir={"": "."},
    package_data={
        "fastseg": [
            "py.typed",
            "_build_info.json",
            "weights/*.pt",
            "weights/photo.jpg",
            "weights/README.md",
        ]
    },
    ext_modules=extensions,
    cmdclass={"build_ext": NinjaBuild},
    setup_requires=further_requirements(),
)
