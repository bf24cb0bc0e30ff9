"""The Triton kernels of the exact Gaussian filter without a GPU: interpreted, and compiled."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.triton_aot import (
    NAMES,
    compile_kernel,
    each_arch,
    integers,
    matrix_products,
    resources,
    run_interpreted,
)

SHARED_BYTES = 99 << 10  # what a block may have on sm_86, sm_89 and sm_120, the least of all


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(Path(__file__).parent / "exact_gaussian_filter_interpreted.py")


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
    from fastseg.kernels.crf import exact_gaussian_filter as kernels
    from fastseg.kernels.crf import exact_gaussian_filter_blocks as blocks
    from fastseg.kernels.crf.exact_gaussian_filter_kernels import Lists, Points, Sizes

    if kernel_name == "near_blocks_kernel":
        kernel, constants = blocks.near_blocks_kernel, {"STRETCH": blocks.NEAR_STRETCH}
        signature = dict.fromkeys(kernel.arg_names, "i32")
        signature |= {"lower": "*fp32", "upper": "*fp32", "limit": "fp32"}
        signature |= {"counts": "*i32", "lists": "*i32"}
    else:
        kernel = getattr(kernels, kernel_name)
        gradient = kernel_name == "grad_features_kernel"
        constants = kernels.tile(dtype, dims, 100, gradient)._asdict()
        values = f"*{NAMES[dtype]}"
        signature = {
            "points": Points("*fp32", "*fp32", "*i64"),
            "near": Lists("*i32", "*i32"),
            "sizes": integers(Sizes),
            "grads": values,
            "values": values,
            "out": "*fp32" if gradient else values,
        }
    strides = ("chunk_stride", "out_stride")
    return compile_kernel(kernel, arch, signature, constants, kernels.OPTIONS, strides)


@each_arch
@pytest.mark.parametrize(
    ("dtype", "dims"),
    [(torch.float32, 16), (torch.float32, 32), (torch.float16, 16), (torch.bfloat16, 32)],
    ids=str,
)
@pytest.mark.parametrize("name", ["filter_kernel", "grad_features_kernel"])
def test_kernels_fit_registers_and_shared_memory(name, dtype, dims, arch):
    kernel = compiled(name, arch, dtype, dims)
    used = resources(kernel)
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
def test_the_lists_kernel_does_not_spill(arch):
    used = resources(compiled("near_blocks_kernel", arch, torch.float32, 16))
    assert used["REG"] <= 64
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("version", ["None", "'13.0'"])
def test_triton_runs_the_op_where_torch_is_built_for_cuda(version):
    """And nothing imports it before the op runs."""
    script = f"""
import sys, torch
torch.version.cuda = {version}
from fastseg._core import library
assert "fastseg.kernels.crf.exact_gaussian_filter" not in sys.modules
for name in ("exact_gaussian_filter", "exact_gaussian_filter_backward"):
    print(library.backend(name, "cuda"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    expected = "reference" if version == "None" else "Triton"
    assert done.stdout.split() == [expected] * 2, done.stderr
