"""Generates a kernel of the Hugging Face Hub from the ops: its sources and a CPU build of them.

    python .ci/hub/generate.py build/hub

``build.toml``, ``csrc``, ``torch-ext`` are what kernel-builder builds for each torch and device.
``build/torch-stable-abi211-cpu-<machine>-linux`` is what the `kernels` package loads on this one.
"""

import base64
import hashlib
import json
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import python_sources
import setuptools

ROOT = Path(__file__).resolve().parents[2]
REGISTRATION = "STABLE_TORCH_LIBRARY_IMPL(fastseg,"
BINDING = """// Makes a Python module of the library, which kernel-builder imports.
#include <torch/csrc/stable/library.h>

#include "registration.h"

REGISTER_EXTENSION(TORCH_EXTENSION_NAME)
"""
OPS = '''"""The namespace of this build's ops."""

import torch

ops = torch.ops.{namespace}


def add_op_namespace_prefix(op_name: str) -> str:
    """Returns an op's name with its namespace."""
    return f"{namespace}::{{op_name}}"
'''


def cpp_sources(levels: dict[str, str]) -> dict[str, str]:
    """Returns the texts of the C++ and CUDA sources by their paths.

    Args:
        levels: flags of the compiler by their SIMD level. A kernel has one source for each: a
            source cannot be compiled twice there.
    """
    # Modules of Python are no part of the Hub's one library.
    modules = {"host", "launch"}
    paths = [p for p in ROOT.glob("csrc/**/*.*") if not modules & {*p.relative_to(ROOT).parts}]
    namespace = REGISTRATION.replace("fastseg", "TORCH_EXTENSION_NAME")
    files = {
        str(p.relative_to(ROOT)): p.read_text().replace(REGISTRATION, namespace)
        for p in sorted(paths)
    }
    for kernel in [path for path in files if path.endswith("_kernel.cpp")]:
        for level in levels:
            text = f'#define FASTSEG_SIMD {level}\n#include "{kernel.removeprefix("csrc/")}"\n'
            files[f"levels/{level}/{kernel.replace('/', '_')}"] = text
    return files


def toml_list(name: str, values: list[str]) -> str:
    """Returns a setting of build.toml that is a list."""
    return f"{name} = [\n" + "".join(f"  {json.dumps(v)},\n" for v in values) + "]\n"


def build_toml(files: dict[str, str], levels: dict[str, str], stable_abi: str) -> str:
    """Returns the settings of kernel-builder: one section for each set of the compiler's flags."""
    headers = [path for path in files if path.endswith(".h")]
    kernels = [path for path in files if path.endswith("_kernel.cpp") and path in files]
    x86 = ["-DFASTSEG_X86"] if "avx2" in levels else []
    text = "[general]\n" + 'name = "fastseg"\nversion = 0\nedition = 5\nlicense = "Apache-2.0"\n'
    text += toml_list("backends", ["cpu", "cuda"])
    text += f'\n[torch.stable-abi]\ncpu = "{stable_abi}"\ncuda = "{stable_abi}"\n'
    text += '\n[torch]\ninclude = ["csrc"]\n' + toml_list("src", ["torch-ext/torch_binding.cpp"])

    def section(name: str, backend: str, sources: list[str], flags: list[str]) -> str:
        head = f'\n[kernel.{name}]\nbackend = "{backend}"\ndepends = ["torch"]\n'
        flags_name = "cxx-flags" if backend == "cpu" else "cuda-flags"
        settings = toml_list("include", ["csrc"]) + toml_list(flags_name, flags)
        return head + settings + toml_list("src", sources)

    cpu = [p for p in files if p.startswith("csrc/cpu/") and p.endswith(".cpp")]
    bindings = [path for path in cpu if path not in kernels]
    text += section("cpu", "cpu", bindings + headers, ["-O3", "-std=c++20", *x86])
    for level, flags in levels.items():
        wrapped = [path for path in files if path.startswith(f"levels/{level}/")]
        options = ["-O3", "-std=c++20", *x86, *flags.split()]
        text += section(f"cpu_{level}", "cpu", wrapped + kernels + headers, options)
    cuda = [p for p in files if p.startswith("csrc/cuda/") and p.endswith((".cpp", ".cu"))]
    return text + section("cuda", "cuda", cuda + headers, ["-O3", "-std=c++20"])


def write(folder: Path, files: dict[str, str]) -> None:
    """Writes texts by their paths in a folder."""
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def load_setup() -> dict:
    """Returns what setup.py defines, without its build."""
    setuptools.setup = lambda **keywords: None
    sys.argv = ["setup.py", "build_ext"]
    return runpy.run_path(str(ROOT / "setup.py"))


def build_library(setup: dict, sources: Path, namespace: str, target: Path) -> None:
    """Builds the CPU ops in a namespace; objects without ops are those of the normal build."""

    class NamespacedGraph(setup["Graph"]):
        def compile(self, source, flags="", tag="", first=None):
            if REGISTRATION in (ROOT / source).read_text():
                source = str(sources / source)
                flags += f" -DTORCH_EXTENSION_NAME={namespace}"
            return super().compile(source, flags, tag, first)

    folder = ROOT / "build/ninja"
    folder.mkdir(parents=True, exist_ok=True)
    graph = NamespacedGraph(folder, setup["find_torch"](), None)
    graph.cpu_ops(target)
    (folder / "hub.ninja").write_text("\n".join(graph.lines) + "\n")
    ninja = [sys.executable, "-m", "ninja", "-C", folder, "-f", "hub.ninja"]
    subprocess.run(ninja, check=True)


def metadata(folder: Path, namespace: str) -> str:
    """Returns metadata.json of a build: its name, its device and hashes of its files."""
    hashes = {
        str(path.relative_to(folder)): base64.b64encode(
            hashlib.sha256(path.read_bytes()).digest()
        ).decode()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    about = {
        "name": "fastseg",
        "id": namespace,
        "version": 0,
        "license": "Apache-2.0",
        "python-depends": [],
        "backend": {"type": "cpu"},
        "digest": {"algorithm": "sha256", "files": hashes},
    }
    return json.dumps(about, indent=2) + "\n"


def main(folder: Path) -> None:
    """Writes the kernel's repository to a folder, which is emptied first."""
    setup = load_setup()
    abi, levels = setup["STABLE_ABI"], setup["SIMD_FLAGS"]
    python, native = python_sources.package(), cpp_sources(levels)
    content = json.dumps([python, native], sort_keys=True)
    namespace = f"_fastseg_cpu_{hashlib.sha1(content.encode()).hexdigest()[:7]}"
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, native)
    write(folder / "torch-ext/fastseg", python)
    texts = {"build.toml": build_toml(native, levels, abi), "torch-ext/torch_binding.cpp": BINDING}
    write(folder, texts)
    shutil.copy(ROOT / "LICENSE", folder)
    variant = f"torch-stable-abi{re.sub(r'[.]', '', abi)}-cpu-{platform.machine()}-linux"
    built = folder / "build" / variant
    write(built, {**python, "_ops.py": OPS.format(namespace=namespace)})
    build_library(setup, folder, namespace, built / f"{namespace}.abi3.so")
    write(built, {"metadata.json": metadata(built, namespace)})
    print(f"{built} is built; its ops are in torch.ops.{namespace}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
