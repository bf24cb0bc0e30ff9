"""The Triton kernels of the exact Gaussian filter without a GPU: interpreted, and compiled.

What the interpreter cannot show is speed and the accuracy of TF32. It computes 16-bit values as
float16 alone: its numpy has no bfloat16.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")
INTERPRETED = Path(__file__).parent / "exact_gaussian_filter_interpreted.py"
ARCHS = (80, 90, 100)
SHARED_BYTES = 99 << 10  # what a block may have on sm_86, sm_89 and sm_120, the least of all
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
CUOBJDUMP = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=TOOLS)
each_arch = pytest.mark.parametrize("arch", ARCHS)
POINTERS = {
    "features": "*fp32", "centers": "*fp32", "lower": "*fp32", "upper": "*fp32", "limit": "fp32",
    "order": "*i64", "counts": "*i32", "lists": "*i32",
}  # fmt: skip
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


@pytest.fixture(scope="module")
def interpreted():
    root = str(INTERPRETED.parents[1])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, INTERPRETED], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_interpreted_kernels_sum_over_all_pairs(interpreted):
    assert len(interpreted["errors"]) == 20
    for number, (out, grad_values, grad_features) in enumerate(interpreted["errors"]):
        half = number // 2 in (6, 7)  # outputs and weights are rounded to float16
        assert max(out, grad_values) < (5e-4 if half else 2e-6), number
        assert grad_features < 5e-6, number


def test_lists_made_in_several_launches(interpreted):
    once, several = interpreted["shares"]
    assert 0 < once < 0.6
    assert 0 < several < 0.6
    assert max(interpreted["launches"]) < 5e-6


@functools.cache
def compiled(kernel_name: str, arch: int, dtype: torch.dtype, dims: int):
    """A kernel as its launcher would have it compiled for that GPU, of full chunks of channels."""
    from fastseg.kernels import exact_gaussian_filter as kernels
    from fastseg.kernels import exact_gaussian_filter_blocks as blocks
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if kernel_name == "near_blocks_kernel":
        kernel, constants = blocks.near_blocks_kernel, {"STRETCH": blocks.NEAR_STRETCH}
    else:
        kernel = getattr(kernels, kernel_name)
        gradient = kernel_name == "grad_features_kernel"
        constants = kernels.tile(dtype, dims, 100, gradient)._asdict()
    names = kernel.arg_names
    signature = {}
    for name in names:
        of_values = name in ("values", "grads") or (name == "out" and kernel_name[0] == "f")
        like_values = f"*{NAMES[dtype]}" if of_values else "*fp32" if name == "out" else "i32"
        signature[name] = "constexpr" if name in constants else POINTERS.get(name, like_values)
    aligned = [n for n in names if signature[n][0] == "*" or n.endswith("stride")]
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in aligned}
    values = {(names.index(n),): v for n, v in constants.items()}
    source = ASTSource(kernel, signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=kernels.OPTIONS)


def resources(kernel, folder: Path) -> dict[str, int]:
    """Registers and stack of a compiled kernel, by ptxas's account."""
    if not CUOBJDUMP:
        pytest.skip("needs cuobjdump, of the CUDA toolkit or the triton package")
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    text = subprocess.run(
        [CUOBJDUMP, "--dump-resource-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    return {k: int(n) for k, n in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", text)}


def matrix_products(kernel, arch: int) -> int:
    """Instructions of that architecture's matrix units."""
    instruction = {80: "mma.sync.aligned", 90: "wgmma.mma_async", 100: "tcgen05.mma"}[arch]
    return kernel.asm["ptx"].count(instruction)


@each_arch
@pytest.mark.parametrize(
    ("dtype", "dims"),
    [(torch.float32, 16), (torch.float32, 32), (torch.float16, 16), (torch.bfloat16, 32)],
    ids=str,
)
@pytest.mark.parametrize("name", ["filter_kernel", "grad_features_kernel"])
def test_kernels_fit_registers_and_shared_memory(name, dtype, dims, arch, tmp_path):
    kernel = compiled(name, arch, dtype, dims)
    used = resources(kernel, tmp_path)
    assert used["REG"] <= 255
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"
    assert kernel.metadata.shared <= SHARED_BYTES
    assert matrix_products(kernel, arch) > 0
    assert "ex2.approx" in kernel.asm["ptx"]


@each_arch
def test_float32_takes_three_tf32_terms(arch):
    """Unless the user asked torch for less; the exponents always do."""
    shares = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            kernel = compiled.__wrapped__("filter_kernel", arch, torch.float32, 16)
        finally:
            torch.set_float32_matmul_precision("highest")
        # The compiler may repeat the loop's body: count against its exponentials.
        exponentials = kernel.asm["ptx"].count("ex2.approx")
        shares[precision] = matrix_products(kernel, arch) / exponentials
    assert shares["highest"] > 1.5 * shares["high"]


@each_arch
def test_the_lists_kernel_does_not_spill(arch, tmp_path):
    used = resources(compiled("near_blocks_kernel", arch, torch.float32, 16), tmp_path)
    assert used["REG"] <= 64
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("version", ["None", "'13.0'"])
def test_triton_runs_the_op_where_torch_is_built_for_cuda(version):
    """And nothing imports it before the op runs."""
    script = f"""
import sys, torch
torch.version.cuda = {version}
from fastseg import _extension
assert "fastseg.kernels.exact_gaussian_filter" not in sys.modules
for name in ("exact_gaussian_filter", "exact_gaussian_filter_backward"):
    print(_extension.backend(name, "cuda"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    expected = "reference" if version == "None" else "Triton"
    assert done.stdout.split() == [expected] * 2, done.stderr
