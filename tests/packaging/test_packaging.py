"""The helpers of setup.py in stubbed environments, and what the linker made of _C.so."""

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools

from tests.cuda_on_cpu import objects

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "fastseg/_C.so"
SETTINGS = (
    "FASTSEG_CUDA",
    "CUDA_HOME",
    "FASTSEG_CUDA_ARCHS",
    "FASTSEG_TORCH_DIR",
    "CXX",
    "LDFLAGS",
)
needs_library = pytest.mark.skipif(
    not LIBRARY.exists() or not shutil.which("nm"), reason="needs _C.so in the source folder and nm"
)


@pytest.fixture
def setup(monkeypatch):
    """setup(NAME=value, ...): what setup.py defines with these settings."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)

    def load(packages=(), argv=("setup.py", "bdist_wheel"), **settings):
        arguments = {}
        with monkeypatch.context() as patch:
            patch.setattr(setuptools, "setup", lambda **keywords: arguments.update(keywords))
            patch.setattr(sys, "path", [*map(str, packages), *sys.path])
            patch.setattr(sys, "argv", list(argv))
            for name, value in settings.items():
                patch.setenv(name, str(value))
            module = runpy.run_path(str(ROOT / "setup.py"))
        return module | {"arguments": arguments}

    return load


def without_system_nvcc(monkeypatch):
    """Hides /usr/local/cuda and what PATH shows."""
    is_file = Path.is_file
    hidden = Path("/usr/local/cuda/bin/nvcc")
    monkeypatch.setattr(Path, "is_file", lambda path: path != hidden and is_file(path))
    monkeypatch.setenv("PATH", "/nonexistent")


def fake_nvcc(home, version="13.0"):
    """A script that says it is nvcc and knows two architectures."""
    nvcc = home / "bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f"--version) echo 'Cuda compilation tools, release {version}, V{version}.1';;\n"
        "--list-gpu-code) echo sm_80; echo sm_90; echo sm_999;;\n"
        "--dryrun) echo '#$ _HERE_=/real/cuda/bin' >&2;;\n"
        "esac\n"
    )
    nvcc.chmod(0o755)
    return nvcc


def fake_torch(folder, version="2.12.1+cu130"):
    (folder / "torch").mkdir(parents=True)
    (folder / "torch/version.py").write_text(f"__version__ = '{version}'\n")
    return folder / "torch"


def test_torch_is_found_in_the_environment_or_by_its_variable(setup, tmp_path, monkeypatch):
    in_environment, by_variable = fake_torch(tmp_path / "a"), fake_torch(tmp_path / "b")
    module = setup(FASTSEG_CUDA=0)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "a"), *sys.path])
    assert module["find_torch"]() == in_environment
    assert module["torch_version"](in_environment) == "2.12.1+cu130"
    monkeypatch.setenv("FASTSEG_TORCH_DIR", str(by_variable))
    assert module["find_torch"]() == by_variable


def test_no_torch(setup, tmp_path, monkeypatch):
    module = setup(FASTSEG_CUDA=0)
    monkeypatch.setenv("FASTSEG_TORCH_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=f"no torch in {tmp_path}; 'pip install torch' first"):
        module["find_torch"]()
    monkeypatch.delenv("FASTSEG_TORCH_DIR")
    without_torch(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match="no torch in this environment"):
        module["find_torch"]()


def without_torch(monkeypatch, folder):
    """Hides every torch, of the environment, the system and the user."""
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr("sysconfig.get_path", lambda name, **settings: str(folder))
    monkeypatch.setattr("site.getusersitepackages", lambda: str(folder))


def test_a_front_end_installs_torch_for_the_build_where_there_is_none(setup, tmp_path, monkeypatch):
    asked = {"argv": ("setup.py", "egg_info"), "FASTSEG_CUDA": 0}
    assert setup(**asked)["arguments"]["setup_requires"] == []
    assert setup(**asked, FASTSEG_TORCH_DIR=tmp_path)["arguments"]["setup_requires"] == [
        f"torch>={setup(FASTSEG_CUDA=0)['OLDEST_TORCH']}"
    ]
    assert setup(FASTSEG_CUDA=0, FASTSEG_TORCH_DIR=tmp_path)["arguments"]["setup_requires"] == []
    without_torch(monkeypatch, tmp_path)
    assert setup(FASTSEG_CUDA=0)["torch_folder"]() is None


def test_a_front_end_may_ask_before_torch_is_there_though_nvcc_is(setup, tmp_path):
    home = fake_nvcc(tmp_path / "home").parents[1]
    asked = {"argv": ("setup.py", "egg_info"), "CUDA_HOME": home, "FASTSEG_TORCH_DIR": tmp_path}
    module = setup(**asked)
    assert module["arguments"]["setup_requires"] == [f"torch>={module['OLDEST_TORCH']}"]
    assert module["BUILDS_CUDA"]


@pytest.mark.parametrize(("cuda", "built"), [("'13.0'", True), ("None", False)])
def test_cuda_ops_are_built_for_a_torch_that_can_load_them(setup, tmp_path, capsys, cuda, built):
    home, torch = fake_nvcc(tmp_path / "home").parents[1], fake_torch(tmp_path)
    with (torch / "version.py").open("a") as file:
        file.write(f"cuda: Optional[str] = {cuda}\n")
    settings = {"CUDA_HOME": home, "FASTSEG_TORCH_DIR": torch}
    module = setup(**settings)
    assert module["BUILDS_CUDA"] == built
    assert ("fastseg._C_cuda" in [e.name for e in module["extensions"]]) == built
    module["check_nvcc"](module["NVCC"])
    said = "torch is a build without CUDA, building for the CPU only" in capsys.readouterr().out
    assert said != built
    assert setup(FASTSEG_CUDA=1, **settings)["BUILDS_CUDA"]


def test_without_torch_a_front_end_that_installs_none_stops_before_it_downloads(setup, tmp_path):
    """The metadata are asked for before the dependencies are fetched."""
    message = "'pip install torch' first, then 'pip install .'"
    with pytest.raises(SystemExit, match=message):
        setup(argv=("setup.py", "dist_info"), FASTSEG_CUDA=0, FASTSEG_TORCH_DIR=tmp_path)


@pytest.mark.parametrize("value", ["true", "false", None])
def test_torch_of_the_system_where_a_virtual_environment_sees_it(
    setup, tmp_path, monkeypatch, value
):
    module = setup(FASTSEG_CUDA=0)
    without_torch(monkeypatch, tmp_path / "environment")
    in_system = fake_torch(tmp_path / "system")
    monkeypatch.setattr("site.getusersitepackages", lambda: str(tmp_path / "system"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    if value:
        (tmp_path / "pyvenv.cfg").write_text(f"include-system-site-packages = {value}\n")
    assert module["torch_folder"]() == (in_system if value == "true" else None)


def test_missing_tools_of_the_build_are_named(setup, monkeypatch):
    module = setup(FASTSEG_CUDA=0)
    module["check_tools"]()
    monkeypatch.setitem(module["check_tools"].__globals__, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="'pip install setuptools ninja pybind11' first"):
        module["check_tools"]()


def test_an_editable_install_is_a_folder_on_the_path(setup, tmp_path):
    """Type checkers read such lines of .pth files; they do not run import hooks."""
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    wheels.mkdir()
    no_binaries = shutil.ignore_patterns("*.so", "__pycache__", "*.pt")
    for folder in ("fastseg", "kernels"):  # the second is none in a source distribution
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=no_binaries)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    text = (ROOT / "setup.py").read_text()
    text = text.replace("ext_modules=extensions", "ext_modules=[]")  # nothing is compiled
    (source / "setup.py").write_text(text)
    program = f"from setuptools.build_meta import build_editable; build_editable({str(wheels)!r})"
    command = [sys.executable, "-c", program]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (pth,) = [name for name in archive.namelist() if name.endswith(".pth")]
        (line,) = archive.read(pth).decode().splitlines()
    assert Path(line) == source
    packages = set(setuptools.find_packages(str(source), include=["fastseg*"]))
    declared = set(setup(FASTSEG_CUDA=0)["arguments"]["packages"])
    assert declared == packages
    assert "fastseg.kernels" in declared
    assert (source / "fastseg/py.typed").is_file()


def test_torch_too_old(setup, tmp_path, monkeypatch):
    module = setup(FASTSEG_CUDA=0)
    monkeypatch.setenv("FASTSEG_TORCH_DIR", str(fake_torch(tmp_path, "2.9.0")))
    with pytest.raises(SystemExit, match=r"torch 2\.9\.0 in .* is older than 2\.11"):
        module["find_torch"]()


def test_oldest_torch_is_the_one_that_the_package_depends_on(setup):
    dependencies = (ROOT / "pyproject.toml").read_text()
    assert f'"torch>={setup(FASTSEG_CUDA=0)["OLDEST_TORCH"]}"' in dependencies


def test_sources_compare_shapes_as_the_oldest_torch_can():
    """Headers of torch 2.11 and 2.12 have no operator for two arrays of sizes, only `equals`."""
    sources = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.c*")]
    assert sources
    array = r"\.(?:sizes|strides)\(\)"
    compared = re.compile(rf"{array}\s*[=!]=|[=!]=\s*[\w.()]+{array}")
    assert [str(s) for s in sources if compared.search(s.read_text())] == []


def test_order_of_nvcc(setup, tmp_path, monkeypatch):
    home = fake_nvcc(tmp_path / "home")
    in_registry = fake_nvcc(tmp_path / "site/nvidia/cu13")
    site = [tmp_path / "site"]
    assert setup(site, CUDA_HOME=tmp_path / "home")["NVCC"] == home
    assert setup(site, CUDA_HOME=tmp_path / "home", FASTSEG_CUDA="registry")["NVCC"] == in_registry
    assert setup(site, CUDA_HOME=tmp_path / "home", FASTSEG_CUDA=0)["NVCC"] is None
    without_system_nvcc(monkeypatch)
    assert setup(site)["NVCC"] == in_registry
    fake_nvcc(tmp_path / "path")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path/bin'}:{os.defpath}")
    assert setup(site)["NVCC"] == tmp_path / "path/bin/nvcc"


def test_no_nvcc(setup, monkeypatch, capsys):
    without_system_nvcc(monkeypatch)
    for setting in ("1", "registry"):
        module = setup(FASTSEG_CUDA=setting)
        with pytest.raises(SystemExit, match=f"FASTSEG_CUDA={setting}, but there is no nvcc 12.0"):
            module["check_nvcc"](module["NVCC"])
    module = setup()
    module["check_nvcc"](module["NVCC"])
    assert "no nvcc found, building for the CPU only" in capsys.readouterr().out
    names = [e.name for e in module["extensions"]]
    assert names == ["fastseg._C", "fastseg._host", "fastseg._launch"]
    with pytest.raises(SystemExit, match="FASTSEG_CUDA=maybe is not one of"):
        setup(FASTSEG_CUDA="maybe")


def test_nvcc_too_old_for_the_sources_is_passed_over(setup, tmp_path, monkeypatch):
    without_system_nvcc(monkeypatch)
    fake_nvcc(tmp_path / "old", "11.5")
    new = fake_nvcc(tmp_path / "site/nvidia/cu13")
    assert setup([tmp_path / "site"], CUDA_HOME=tmp_path / "old")["NVCC"] == new
    assert setup(CUDA_HOME=tmp_path / "old")["NVCC"] is None


def test_only_a_front_end_that_asks_is_told_to_install_nvcc(setup):
    asked = setup(FASTSEG_CUDA="registry", argv=("setup.py", "egg_info"))
    assert "nvidia-cuda-nvcc==13.0.*" in asked["arguments"]["setup_requires"]
    assert setup(FASTSEG_CUDA="registry")["arguments"]["setup_requires"] == []
    assert setup(FASTSEG_CUDA=0, argv=("setup.py", "egg_info"))["arguments"]["setup_requires"] == []


def test_architectures_and_folder_are_what_nvcc_says(setup, tmp_path, monkeypatch):
    nvcc = fake_nvcc(tmp_path)
    module = setup(FASTSEG_CUDA=0)
    assert module["nvcc_version"](nvcc) == "13.0"
    assert module["cuda_archs"](nvcc) == ["80", "90"]
    assert module["cuda_home"](nvcc) == Path("/real/cuda")
    monkeypatch.setenv("FASTSEG_CUDA_ARCHS", "120,90a;80")
    assert module["cuda_archs"](nvcc) == ["80", "90a", "120"]


def test_front_end_of_nvcc_compiles_once_for_a_generation(setup):
    codes = setup(FASTSEG_CUDA=0)["cuda_codes"]
    assert codes(list(objects.ARCHS)) == list(objects.CODES)
    assert codes(["86"]) == ["-gencode=arch=compute_86,code=[sm_86,compute_86]"]
    assert codes(["80", "90a", "120"]) == [
        "-gencode=arch=compute_80,code=[sm_80]",
        "-gencode=arch=compute_90a,code=[sm_90a]",
        "-gencode=arch=compute_120,code=[sm_120,compute_120]",
    ]


def graph(setup, tmp_path, **settings):
    """build.ninja of the CPU ops, as text."""
    module = setup(FASTSEG_CUDA=0, **settings)
    lines = module["Graph"](tmp_path / "a folder", fake_torch(tmp_path), None)
    lines.cpu_ops(tmp_path / "_C.so")
    return "\n".join(lines.lines)


def test_objects_are_linked_from_the_oldest_instruction_set_up(setup, tmp_path):
    text = graph(setup, tmp_path).replace("$ ", "_")
    (link,) = re.findall(r"^build \S+_C\.so: link (.+)", text, re.MULTILINE)
    levels = [Path(o).name.split(".")[2] for o in link.split()]
    order = ["o", "portable", "avx2", "avx512"]
    assert "portable" in levels
    assert levels == sorted(levels, key=order.index)
    assert set(re.findall(r"-DFASTSEG_SIMD=(\w+)", text)) == set(levels) - {"o"}


def test_only_kernels_get_processor_flags(setup, tmp_path):
    pairs = re.findall(r"^build .*: cxx (.+)\n  flags =(.*)", graph(setup, tmp_path), re.MULTILINE)
    assert pairs
    for source, flags in pairs:
        of_kernels = source.split()[0].endswith(("_kernel.cpp", "cpu/kernels.h"))
        assert ("FASTSEG_SIMD" in flags) == of_kernels
        assert "FASTSEG_SIMD" in flags or "-m" not in flags


def test_the_module_for_numpy_is_compiled_without_the_headers_of_torch(setup, tmp_path):
    """Among them is another pybind11, which some releases refuse beside the stable ABI."""
    module = setup(FASTSEG_CUDA=0)
    lines = module["Graph"](tmp_path, fake_torch(tmp_path), None)
    lines.host(tmp_path / "_host.so", lines.host_objects(), [])
    text = "\n".join(lines.lines)
    objects = re.findall(r"^build (.*\.o): (\w+) ", text, re.MULTILINE)
    assert {rule for _, rule in objects} == {"host"}
    # Other Pythons' builds share the folder.
    assert all(sys.implementation.cache_tag in name for name, _ in objects)
    (command,) = re.findall(r"^rule host\n  command = (.+)", text, re.MULTILINE)
    assert str(tmp_path / "torch") not in command
    assert "TORCH_TARGET_VERSION" not in command


def test_the_launcher_is_compiled_for_every_python_without_the_headers_of_torch(setup, tmp_path):
    module = setup(FASTSEG_CUDA=0)
    lines = module["Graph"](tmp_path, fake_torch(tmp_path), None)
    lines.launch(tmp_path / "_launch.abi3.so")
    text = "\n".join(lines.lines)
    pairs = re.findall(r"^build .*\.o: (\w+) .+\n  flags =(.*)", text, re.MULTILINE)
    assert pairs
    assert {rule for rule, _ in pairs} == {"host"}
    assert all("-DPy_LIMITED_API=0x030A0000" in flags for _, flags in pairs)
    assert ">=3.10" in (ROOT / "pyproject.toml").read_text()


def test_compiler_and_flags_of_links_are_those_asked_for(setup, tmp_path):
    text = graph(setup, tmp_path, CXX="ccache clang++", LDFLAGS="-L/of/mine")
    assert "command = ccache clang++ -O3" in text
    # They precede the libraries, which are looked for in the order of the folders.
    assert "command = ccache clang++ -shared -s $in -o $out -L/of/mine $flags" in text


@needs_library
def test_library_needs_only_the_stable_interface_of_torch():
    symbols = subprocess.run(["nm", "-D", LIBRARY], capture_output=True, text=True).stdout
    undefined = re.findall(r" U (\S+)", symbols)
    assert any(s.startswith("aoti_torch_") for s in undefined)
    # What is versioned belongs to libc and libstdc++.
    others = [s for s in undefined if "@" not in s and not s.startswith(("aoti_", "torch_"))]
    assert others == []
    defined = re.findall(r" [TDB] (\S+)", symbols)
    ours = [s for s in defined if s not in ("__bss_start", "_edata", "_end", "_init", "_fini")]
    assert all(s.startswith("fastseg_") for s in ours), ours


@needs_library
@pytest.mark.skipif(not shutil.which("objdump"), reason="needs objdump")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 instructions")
def test_shared_inline_functions_run_on_the_oldest_processor():
    """The linker keeps one copy of an inline function, here one that all SIMD levels may call."""
    symbols = subprocess.run(["nm", "-D", "-S", LIBRARY], capture_output=True, text=True).stdout
    functions = re.findall(r"^(\w+) (\w+) W (\S+)", symbols, re.MULTILINE)
    assert functions, "the C++ library's inline functions are exported"
    for start, size, name in functions:
        stop = int(start, 16) + int(size, 16)
        command = ["objdump", "-d", f"--start-address=0x{start}", f"--stop-address={stop}", LIBRARY]
        code = subprocess.run(command, capture_output=True, text=True).stdout
        assert f"{start} <" in code, f"{name} was not disassembled"
        assert not re.search(r"\tv[a-z]", code), f"{name} has AVX instructions"
