"""A wheel of the built libraries works in an environment of its own, and what manylinux asks."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import numpy
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("fastseg", "kernels", "csrc")
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "Makefile")

# The libraries are taken as they are: to compile them takes minutes.
COPIED = """
class NinjaBuild(NinjaBuild):
    def build_extensions(self):
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / "built" / target.name, target)
        shutil.copy(ROOT / "built/_build_info.json", target.parent)


setup(
"""

# Symbols that the system's libraries have in versions newer than manylinux_2_28's, and an exception
# that leaves the library.
NEWER_SYMBOLS = """
#include <cmath>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>

extern "C" __attribute__((visibility("default"))) double try_all(double x) {
  static std::once_flag once;
  std::call_once(once, [] {});
  std::mutex mutex;
  std::condition_variable ready;
  std::unique_lock<std::mutex> lock(mutex);
  ready.wait(lock, [] { return true; });
  std::shared_ptr<double> shared = std::make_shared<double>(std::exp(x) + std::pow(x, x));
  std::ostringstream text;
  text << *shared;
  if (x < 0) throw std::invalid_argument(text.str());
  return std::stod(std::move(text).str());
}
"""
CALLER = """
#include <cstdio>
#include <stdexcept>

extern "C" double try_all(double x);

int main() {
  try {
    if (try_all(0) != 2) return 1;
    try_all(-1);
  } catch (const std::invalid_argument& error) {
    std::puts(error.what());
    return 0;
  }
  return 2;
}
"""


def run(*command, **options) -> str:
    """Returns what a command prints; its messages are part of the error where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command[0]}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel that setup.py packs of the sources and the libraries of this source folder."""
    built = sorted(ROOT.glob("fastseg/*.so"))
    if not {"_C", "_host", "_launch"} <= {library.name.partition(".")[0] for library in built}:
        pytest.skip("needs the built libraries in the source folder")
    source = tmp_path_factory.mktemp("source")
    unwanted = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__")
    for name in FOLDERS:
        if (ROOT / name).is_dir():  # a source distribution has fastseg/kernels alone
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=unwanted)
    for name in FILES:
        shutil.copy(ROOT / name, source)
    (source / "built").mkdir()
    for file in (*built, ROOT / "fastseg/_build_info.json"):
        shutil.copy(file, source / "built")
    text = (source / "setup.py").read_text()
    (source / "setup.py").write_text(text.replace("\nsetup(\n", COPIED))
    program = "from setuptools.build_meta import build_wheel; print(build_wheel('wheels'))"
    with_cuda = any(library.name == "_C_cuda.so" for library in built)
    setting = {"FASTSEG_CUDA": "auto" if with_cuda else "0"}
    run(sys.executable, "-c", program, cwd=source, env=os.environ | setting)
    (wheel,) = (source / "wheels").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The Python of a bare virtual environment with the wheel and, by a .pth file, torch."""
    if find_spec("pip") is None:
        pytest.skip("needs pip")
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin/python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, wheel)
    purelib = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    # What .pth files of these folders name, such as an editable fastseg, is not on the path.
    folders = {str(Path(m.__file__).parents[1]) for m in (torch, numpy)}
    (Path(purelib) / "torch.pth").write_text("\n".join(sorted(folders)) + "\n")
    return python


def test_a_wheel_has_one_set_of_op_libraries_and_one_module_for_its_python(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    libraries = {name for name in names if name.endswith(".so")}
    of_this_python = {name for name in libraries if "cpython" in name}
    of_every_python = {"fastseg/_C.so", "fastseg/_launch.abi3.so"}
    assert of_every_python <= libraries
    assert libraries - of_this_python <= {*of_every_python, "fastseg/_C_cuda.so"}
    (host,) = of_this_python
    assert host.startswith(f"fastseg/_host.{sys.implementation.cache_tag}"[: len(host)])
    assert f"-cp{sys.version_info[0]}{sys.version_info[1]}-" in wheel.name


def test_a_wheel_has_every_module_and_no_source_of_the_libraries(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    modules = {str(p.relative_to(ROOT)) for p in ROOT.glob("fastseg/**/*.py")}
    modules |= {f"fastseg/{p.relative_to(ROOT)}" for p in ROOT.glob("kernels/**/*.py")}
    assert modules <= names
    assert {"fastseg/py.typed", "fastseg/_build_info.json"} <= names
    assert any(re.fullmatch(r"fastseg/weights/\w+\.pt", name) for name in names)
    assert "fastseg/weights/photo.jpg" in names, "fastseg demo shows it"
    others = {n for n in names if not n.startswith(("fastseg/", "fastseg_kernels-"))}
    assert not others


def test_an_installed_wheel_runs(environment, tmp_path):
    """It is imported from a folder other than the sources', without the variables of this one."""
    script = ROOT / ".ci/try_installed.py"
    alone = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "FASTSEG_"))}
    assert "fastseg" in run(
        environment, "-W", "error::RuntimeWarning", script, cwd=tmp_path, env=alone
    )


def newer_versions(library: Path) -> set[str]:
    """The versions of symbols that a library needs and manylinux_2_28 lacks."""
    newest = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
    found = re.findall(r"\((GLIBC|GLIBCXX|CXXABI)_([\d.]+)\)", run("objdump", "-T", library))
    return {f"{kind}_{n}" for kind, n in found if tuple(map(int, n.split("."))) > newest[kind]}


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
@pytest.mark.skipif(sys.platform != "linux", reason="makes stand-ins for glibc")
def test_stand_ins_keep_newer_symbols_out_of_a_library(tmp_path):
    source, caller = tmp_path / "library.cpp", tmp_path / "caller.cpp"
    source.write_text(NEWER_SYMBOLS)
    caller.write_text(CALLER)
    flags = run(sys.executable, ROOT / ".ci/manylinux.py", tmp_path / "stand-ins").split()
    library = tmp_path / "liblibrary.so"
    hidden = ["-O2", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-shared"]
    command = ["g++", *hidden, source, "-o", library, "-Wl,-z,defs"]
    run(*command)
    if not newer_versions(library):
        pytest.skip("the system is as old as manylinux_2_28")
    run(*command, *flags)
    assert newer_versions(library) == set()
    run("g++", caller, library, "-o", tmp_path / "caller", f"-Wl,-rpath,{tmp_path}")
    assert float(run(tmp_path / "caller")) == pytest.approx(2.718281828**-1 - 1, abs=1e-4)
