"""What fastseg says and does where its compiled libraries are missing, damaged or do not fit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastseg
from fastseg._core import extension, library
from fastseg.cli.info import _build, _built, _triton

PACKAGE = Path(fastseg.__file__).parent
needs_cpu_ops = pytest.mark.skipif(
    extension.CPU_MISSING is not None, reason=f"{extension.CPU_MISSING}"
)
# Imports, uses an op, reports.
PROGRAM = """
import torch, fastseg
from fastseg.cli import main
values, codes = fastseg.max_pool2d(torch.arange(16.0).view(1, 1, 4, 4), 2)
print(fastseg.__file__)
print(values.flatten().tolist(), codes.flatten().tolist())
main(["info"])
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the package without compiled libraries."""
    package = tmp_path / "fastseg"
    ignored = shutil.ignore_patterns("*.so", "_build_info.json", "__pycache__", "weights")
    shutil.copytree(PACKAGE, package, ignore=ignored)
    return package


def run(copy):
    """What the program prints with the copy, and its lines on stderr."""
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(copy.parent)},
        cwd=copy.parent,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    path, results, *report = result.stdout.splitlines()
    assert path == str(copy / "__init__.py")
    assert results == "[5.0, 7.0, 13.0, 15.0] [3, 3, 3, 3]"
    warnings = [line for line in result.stderr.splitlines() if "Warning" in line]
    return dict(line.split(maxsplit=1) for line in report if line), warnings


def on_reference(report, warnings, reason):
    """Checks the report and the one warning of a package without CPU ops."""
    assert report["CPU"].startswith(f"ops     not loaded: {reason}")
    assert report["max_pool2d"].split() == ["reference", "reference"]
    (warning,) = warnings
    assert f"RuntimeWarning: {reason}" in warning
    assert "'pip install .' in fastseg's source folder builds it" in warning
    assert warning.startswith("<string>:2:"), "it points at the program's import"


def test_never_built(copy):
    report, warnings = run(copy)
    on_reference(report, warnings, "there is no _C.so")
    assert report["built"] == "not yet: 'pip install .' in the source folder builds"
    assert report["CUDA"] == "ops    not loaded: there is no _C_cuda.so"


@needs_cpu_ops
def test_cut_short(copy):
    """Mapping such a file and reading beyond its end would be SIGBUS, which nothing catches."""
    (copy / "_C.so").write_bytes((PACKAGE / "_C.so").read_bytes()[:100_000])
    on_reference(*run(copy), "_C.so is damaged: its end is missing")


@needs_cpu_ops
@pytest.mark.skipif(torch.version.cuda is not None, reason="needs a torch without CUDA")
def test_cuda_library_beside_a_torch_without_cuda(copy):
    shutil.copy(PACKAGE / "_C.so", copy)
    (copy / "_C_cuda.so").touch()
    report, warnings = run(copy)
    assert warnings == []
    assert report["CPU"].startswith("ops     loaded, SIMD level ")
    assert report["CUDA"] == (
        f"ops    not loaded: _C_cuda.so is there, but torch {torch.__version__} "
        "is a build without CUDA"
    )
    on_cpu, on_cuda = report["max_pool2d"].rsplit(maxsplit=1)
    assert (on_cpu.rstrip(), on_cuda) == (library.backend("max_pool2d", "cpu"), "reference")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that the loader reads in this process."""
    monkeypatch.setattr(extension, "_FOLDER", tmp_path)
    return tmp_path


def not_loaded(name="_C.so"):
    library, reason = extension._load(name)
    assert library is None
    return reason


@needs_cpu_ops
@pytest.mark.parametrize("keep", [0, 40, 5000, -1])
def test_every_cut_is_noticed(folder, keep):
    (folder / "_C.so").write_bytes((PACKAGE / "_C.so").read_bytes()[:keep])
    assert not_loaded() == "_C.so is damaged: its end is missing"


def test_not_a_library(folder):
    (folder / "_C.so").write_bytes(bytes(1000))
    assert not_loaded() == "_C.so cannot be loaded: invalid ELF header"


@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
def test_symbol_that_torch_lacks(folder):
    source = folder / "library.cpp"
    source.write_text('extern "C" void torch_of_the_future(); int x = (torch_of_the_future(), 0);')
    subprocess.run(["g++", "-shared", "-fPIC", source, "-o", folder / "_C.so"], check=True)
    assert not_loaded() == "_C.so cannot be loaded: undefined symbol: torch_of_the_future"


def test_what_info_tells_of_the_build(folder):
    assert _built(extension.build_info()).startswith("not yet: 'pip install .'")
    build = {"torch": "2.13.0", "stable_abi": "2.10", "compiler": "g++ 12", "simd": ["portable"]}
    build |= {"nvcc": "13.0", "cuda_archs": ["80", "90"]}
    (folder / "_build_info.json").write_text(json.dumps(build))
    start = "with torch 2.13.0 (stable ABI 2.10), g++ 12, "
    assert _built(extension.build_info()) == start + "CUDA 13.0 for sm_80, sm_90"
    assert _built(build | {"nvcc": None, "cuda_archs": []}) == start + "without CUDA"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"torch": "2.1', "Unterminated string"),
        ("[1, 2]", "a list instead of a dict"),
        ("\x00\xff", "Expecting value"),
    ],
)
def test_a_damaged_note_of_the_build(folder, text, reason):
    (folder / "_build_info.json").write_text(text)
    assert _build().startswith(f"unknown: _build_info.json cannot be read ({reason}")


def test_a_note_of_the_build_that_is_none(folder):
    (folder / "_build_info.json").mkdir()
    assert _build().startswith("unknown: _build_info.json cannot be read ([Errno 21] Is a dir")


def test_a_note_of_another_version_of_the_build(folder):
    (folder / "_build_info.json").write_text('{"torch": "2.99", "nvcc": "14.0"}')
    assert _build() == "with torch 2.99 (stable ABI unknown), unknown, CUDA 14.0 for "


def test_a_library_that_cannot_be_read(folder):
    (folder / "_C.so").mkdir()
    assert not_loaded() == "_C.so cannot be read: Is a directory"


def test_a_triton_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "triton").mkdir()
    (tmp_path / "triton/__init__.py").write_text("raise RuntimeError('no libtriton\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert _triton() == "cannot be imported (RuntimeError: no libtriton)"


@needs_cpu_ops
def test_simd_levels():
    before = extension.simd_level()
    levels = extension.available_simd_levels()
    assert levels[0] == "portable"
    for level in levels:
        with extension.use_simd_level(level):
            assert extension.simd_level() == level
            assert library.backend("max_pool2d", "cpu") == f"C++ ({level})"
    assert extension.simd_level() == before
    with pytest.raises(ValueError, match="'mmx' is not one of"), extension.use_simd_level("mmx"):
        pass


def test_an_unknown_simd_level_is_said():
    command = [sys.executable, "-W", "error", "-c", "import fastseg"]
    environment = {**os.environ, "FASTSEG_SIMD": "avx1024"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode != 0
    assert "FASTSEG_SIMD=avx1024 is not one of portable, avx2, avx512" in result.stderr
