"""The kernel for the Hugging Face Hub: loaded from its folder, it is ops of its own beside fastseg.

Its namespace is its build's, and it needs nothing but torch.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastseg._core import library

ROOT = Path(__file__).resolve().parents[2]
HUB = Path(sys.prefix) / "hub"  # where `make test` installs the package `kernels`
GENERATOR = ROOT / ".ci/hub/generate.py"
OF_KERNELS = """
import kernels
kernels._rust.Build.open(folder)  # reads and checks build.toml
kernel = kernels.get_local_kernel(folder, backend="cpu")
"""
OF_PYTHON = """
import importlib.util
(variant,) = folder.glob("build/*")
name = json.loads((variant / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, variant / "__init__.py")
sys.modules[name] = kernel = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
"""
CLIENT = """
import json, sys, torch
from pathlib import Path
folder = Path(sys.argv[1])
{load}
assert not [n for n in torch._C._dispatch_get_all_op_names() if n.startswith("fastseg::")]
assert not [n for n in sys.modules if n.partition(".")[0] == "fastseg"]
assert kernel.CPU_MISSING is None, kernel.CPU_MISSING

conv = torch.nn.Conv2d(4, 6, 3, padding=2, dilation=2)
x = torch.randn(1, 4, 20, 24, requires_grad=True)
expected = conv(x)
gradient = torch.autograd.grad(expected.square().sum(), x)[0]
conv.forward = kernel.layers.Conv2d.forward.__get__(conv)
torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)
torch.testing.assert_close(
    torch.autograd.grad(conv(x).square().sum(), x)[0], gradient, rtol=1e-4, atol=1e-3
)
compiled = torch.compile(conv, fullgraph=True, backend="eager")
torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)

pool = torch.nn.MaxPool2d(2, return_indices=True)
pool.forward = kernel.layers.MaxPool2d.forward.__get__(pool)
unpool = torch.nn.MaxUnpool2d(2)
unpool.forward = kernel.layers.MaxUnpool2d.forward.__get__(unpool)
values, codes = pool(x)
assert codes.dtype == torch.uint8
indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)[1]
assert torch.equal(unpool(values, codes), torch.nn.functional.max_unpool2d(values, indices, 2))

image = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
assert kernel.dense_crf(torch.randn(1, 3, 16, 16), image, iterations=2).shape == (1, 3, 16, 16)

# fastseg itself has a place beside it.
sys.path.insert(0, sys.argv[3])
import fastseg
assert torch.equal(fastseg.atrous_conv2d(x, conv.weight), kernel.atrous_conv2d(x, conv.weight))
metadata = json.loads(next(folder.glob("build/*/metadata.json")).read_text())
namespace = getattr(torch.ops, metadata["id"])
print(json.dumps([hasattr(namespace, name) for name in json.loads(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What `make hub` generates, its CPU build made of the objects of an earlier build."""
    if not (ROOT / "build/ninja/build.ninja").exists():
        pytest.skip("needs the objects of a build in the source folder, which take minutes to make")
    if not shutil.which(os.environ.get("CXX", "g++").split()[0]):
        pytest.skip("needs the C++ compiler")
    folder = tmp_path_factory.mktemp("hub")
    done = subprocess.run([sys.executable, GENERATOR, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize("load", [OF_PYTHON, OF_KERNELS], ids=["importlib", "kernels"])
def test_a_kernel_is_loaded_from_its_folder(repository, tmp_path, load):
    settings = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if load == OF_KERNELS:
        if not list(HUB.glob("kernels-*.dist-info")):
            pytest.skip(f"needs the package `kernels`: pip install --target {HUB} kernels")
        settings["PYTHONPATH"] = str(HUB)
    client = tmp_path / "client.py"
    client.write_text(CLIENT.format(load=load))
    command = [sys.executable, "-W", "error::RuntimeWarning", client, repository]
    done = subprocess.run(
        [*command, json.dumps(library.NAMES), ROOT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=settings,
    )
    assert done.returncode == 0, done.stderr
    assert all(json.loads(done.stdout.splitlines()[-1]))


def test_modules_import_torch_and_each_other_relatively(repository):
    modules = list(repository.glob("torch-ext/fastseg/**/*.py"))
    assert len(modules) > 50
    optional = {"triton", "numpy"}  # of the Triton kernels, which run where both are
    for module in modules:
        others = set()
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                others |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                others.add(node.module.split(".")[0])
        allowed = {"torch"} | (optional if "kernels" in module.parts else set())
        assert others - sys.stdlib_module_names <= allowed, module
    text = (repository / "torch-ext/fastseg/_core/library.py").read_text()
    assert all(f'find_spec("{name}") is None' in text for name in optional)


def test_metadata_name_the_files_and_the_namespace(repository):
    (variant,) = repository.glob("build/*")
    described = json.loads((variant / "metadata.json").read_text())
    files = {str(p.relative_to(variant)) for p in variant.rglob("*") if p.is_file()}
    assert described["digest"]["files"].keys() == files - {"metadata.json"}
    assert f"{described['id']}.abi3.so" in files
    assert re.fullmatch(r"torch-stable-abi\d+-cpu-\w+-linux", variant.name)


def test_sources_are_all_in_build_toml_and_of_no_fixed_namespace(repository):
    text = (repository / "build.toml").read_text()
    sources = {s for s in re.findall(r'^  "(.+)",$', text, re.MULTILINE) if "/" in s}
    missing = [
        s for s in sources if s != "torch-ext/torch_binding.cpp" and not (repository / s).exists()
    ]
    assert not missing
    built = {str(p.relative_to(repository)) for p in repository.glob("csrc/**/*.c*")}
    built |= {str(p.relative_to(repository)) for p in repository.glob("levels/**/*.cpp")}
    assert built <= sources
    registered = [p for p in repository.glob("csrc/**/*.cpp") if "LIBRARY_IMPL" in p.read_text()]
    assert registered
    assert all("IMPL(TORCH_EXTENSION_NAME," in p.read_text() for p in registered)
    assert '[torch.stable-abi]\ncpu = "2.11"\n' in text
