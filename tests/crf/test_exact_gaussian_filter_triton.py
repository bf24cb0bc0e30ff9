"""The Triton kernels of the exact Gaussian filter without a GPU: interpreted, and compiled."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.triton_aot import (
    LEAST_SHARED,
    NAMES,
    compile_kernel,
    each_arch,
    integers,
    matrix_products,
    resources,
    run_interpreted,
)
from tests.triton_sass import fewest_instructions

SHARED_BYTES = min(LEAST_SHARED.values())  # one size of blocks serves all


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(Path(__file__).parent / "exact_gaussian_filter_interpreted.py")


def test_interpreted_kernels_sum_over_all_pairs(interpreted):
    assert len(interpreted["errors"]) == 20
    for number, (out, grad_values, grad_features) in enumerate(interpreted["errors"]):
        half = number // 2 in (6, 7)  # outputs and weights are rounded to float16
        assert max(out, grad_values) < (5e-4 if half else 2e-6), number
        assert grad_features < 5e-6, number


def test_points_of_every_kind(interpreted):
    """Also where features are large, far from the origin or far from one another."""
    assert len(interpreted["kinds"]) == 4
    for kind, error in interpreted["kinds"].items():
        assert error < 1e-6, kind


def test_channels_of_every_magnitude(interpreted):
    """Each is split by its own scale: the error of an output is one of its channel."""
    assert interpreted["magnitudes"] < 3e-6


def test_nan_reaches_its_neighbours_in_its_channel(interpreted):
    assert interpreted["nan"] == [True, True]


def test_cells_hold_one_block_or_several(interpreted):
    assert min(interpreted["cells"]) == 1
    assert max(interpreted["cells"]) > 10


def test_points_are_sorted_once_for_any_number_of_filters(interpreted):
    """Each of which is a launch that gathers and one that sums and scatters."""
    once, often = interpreted["fields"]
    assert once == often
    assert once["sorts"] == once["levels"] == 8
    assert once["launches of the build"] == 3
    assert once["launches"] == 2
    assert once["ops"] <= 4  # the tensors that the launches fill


def test_bytes_and_products_are_those_of_the_formula(interpreted):
    for counts in interpreted["costs"]:
        for what, (actual, expected) in counts.items():
            assert actual == expected, what


def test_lists_made_in_several_launches(interpreted):
    once, several = interpreted["shares"]
    assert 0 < once < 0.6
    assert 0 < several < 0.6
    assert max(interpreted["launches"]) < 5e-6


@functools.cache
def compiled(kernel_name: str, arch: int, dtype: torch.dtype, d: int):
    """A kernel as its launcher would have it compiled for that GPU, of full chunks of channels."""
    from fastseg.kernels.crf import exact_gaussian_filter as kernels
    from fastseg.kernels.crf import exact_gaussian_filter_blocks as blocks
    from fastseg.kernels.crf import exact_gaussian_filter_operands as operands
    from fastseg.kernels.crf.exact_gaussian_filter_kernels import Lists, Points, Rows, Sizes

    gradient = kernel_name == "grad_features_kernel"
    columns, halves = operands.columns_of(d), kernels.halves_of(dtype)
    channels, keys = kernels.tile(dtype, columns, 100, gradient)
    points = {"BLOCK": blocks.BLOCK, "D": d, "DIMS": blocks.padded_size(d), "COLUMNS": columns}
    values, rows = f"*{NAMES[dtype]}", "*fp16" if halves else f"*{NAMES[dtype]}"
    low, scales = ("*fp16" if halves > 1 else None), ("*fp32" if halves else None)
    boxes = {"lower": "*fp32", "upper": "*fp32"}
    if kernel_name == "near_blocks_kernel":
        kernel, constants = blocks.near_blocks_kernel, {"STRETCH": blocks.NEAR_STRETCH}
        kinds = boxes | {"limit": "fp32", "counts": "*i32", "lists": "*i32"}
    elif kernel_name == "cells_kernel":
        kernel, kinds = blocks.cells_kernel, boxes | {"cells": "*i32", "centers": "*fp32"}
        constants = {"D": d, "DIMS": points["DIMS"], "STRETCH": blocks.CELL_STRETCH}
        kinds["radius"] = "fp32"
    elif kernel_name == "keys_kernel":
        kernel, constants = operands.keys_kernel, points
        kinds = {"features": "*fp32", "centers": "*fp32", "keys": "*fp16"}
    elif kernel_name == "rows_kernel":
        kernel = operands.rows_kernel
        constants = {"BLOCK": blocks.BLOCK, "CHANNELS": channels, "HALVES": halves}
        kinds = {"values": values, "order": "*i32", "high": rows, "low": low, "scales": scales}
    else:
        kernel = getattr(kernels, kernel_name)
        constants = points | {"CHANNELS": channels, "KEYS": keys}
        constants |= {"PRECISION": precision(dtype)} if gradient else {"HALVES": halves}
        kinds = {
            "points": Points("*i32", *["*fp32"] * 3, "*i32", "*fp32", "*fp16"),
            "near": Lists("*i32", "*i32"),
            "sizes": integers(Sizes),
            "grads": values,
            "values": values if gradient else Rows(rows, low, scales),
            "out": "*fp32" if gradient else values,
        }
    signature = dict.fromkeys(kernel.arg_names, "i32") | kinds
    strides = ("chunk_stride", "out_stride")
    options = kernels.options(f"sm_{arch}", columns, gradient)
    return compile_kernel(kernel, arch, signature, constants, options, strides)


def precision(dtype: torch.dtype) -> str:
    """How the gradient's products of values are computed."""
    from fastseg._core.float32_precision import tf32_in_products
    from fastseg.kernels.common import input_precision, precision_of

    return input_precision(precision_of(dtype, tf32_in_products))


CEILINGS = {  # of instructions for 64 queries by 64 keys: filter_kernel's, grad_features_kernel's
    (torch.float32, 5): (400, 2200),
    (torch.float32, 19): (560, 2600),
    (torch.float32, 32): (780, 2700),
    (torch.float16, 5): (270, 700),
    (torch.bfloat16, 32): (560, 950),
}


@each_arch
@pytest.mark.parametrize(("dtype", "d"), CEILINGS, ids=str)
@pytest.mark.parametrize("name", ["filter_kernel", "grad_features_kernel"])
def test_kernels_fit_registers_and_shared_memory(name, dtype, d, arch):
    kernel = compiled(name, arch, dtype, d)
    used = resources(kernel)
    assert used["REG"] <= 255
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"
    assert kernel.metadata.shared <= SHARED_BYTES
    assert matrix_products(kernel, arch) > 0


@each_arch
@pytest.mark.parametrize(("dtype", "d"), CEILINGS, ids=str)
@pytest.mark.parametrize("name", ["filter_kernel", "grad_features_kernel"])
def test_instructions_a_warp_and_tile(name, dtype, d, arch):
    """Of a tile whose keys are of the last one's cell. Four warps have 32 exponentials each."""
    instructions = 32 * fewest_instructions(compiled(name, arch, dtype, d), "MUFU.EX2")
    ceiling = CEILINGS[dtype, d][name == "grad_features_kernel"]
    assert ceiling / 2 < instructions <= ceiling


@each_arch
def test_float32_takes_three_products(arch):
    """Unless the user asked torch for less; the exponents always take one."""
    shares = {}
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            kernel = compiled.__wrapped__("filter_kernel", arch, torch.float32, 5)
        finally:
            torch.set_float32_matmul_precision("highest")
        # The compiler may repeat the loop's body: count against its exponentials.
        exponentials = kernel.asm["ptx"].count("ex2.approx")
        shares[precision] = matrix_products(kernel, arch) / exponentials
    assert shares["highest"] > 1.5 * shares["high"]


@each_arch
@pytest.mark.parametrize(
    "name", ["near_blocks_kernel", "cells_kernel", "keys_kernel", "rows_kernel"]
)
def test_small_kernels_do_not_spill(name, arch):
    used = resources(compiled(name, arch, torch.float32, 5))
    assert used["REG"] <= 128
    assert used["STACK"] == used["LOCAL"] == 0


@pytest.mark.parametrize("version", ["None", "'13.0'"])
def test_triton_runs_the_op_where_torch_is_built_for_cuda(version):
    """And nothing imports it before the op runs."""
    script = f"""
import sys, torch
torch.version.cuda = {version}
from fastseg._core import library
assert "fastseg.kernels.crf.exact_gaussian_filter" not in sys.modules
for name in ("exact_gaussian_blocks", "exact_gaussian_filter", "exact_gaussian_filter_backward"):
    print(library.backend(name, "cuda"))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    expected = "reference" if version == "None" else "Triton"
    assert done.stdout.split() == [expected] * 3, done.stderr
