"""The Triton kernels of dense atrous convolution without a GPU: interpreted, and compiled.

What the interpreter cannot show is speed and the accuracy of TF32. It computes 16-bit values as
float16 alone: its numpy has no bfloat16.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from fastseg.kernels import common
from fastseg.kernels.conv import arguments, aspp_projection, configs, image_pooling
from fastseg.kernels.conv import forward as kernels
from fastseg.kernels.conv import launch as launches
from fastseg.kernels.conv.epilogue import Operands
from fastseg.kernels.conv.geometry import Branch
from tests.triton_aot import (
    ARCHS,
    LEAST_SHARED,
    compile_kernel,
    each_arch,
    integers,
    matrix_products,
    resources,
    run_interpreted,
)

INTERPRETED = Path(__file__).parent / "atrous_conv2d_interpreted.py"


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(INTERPRETED)


@pytest.mark.parametrize(
    ("name", "halves"),
    [
        ("default", {1}),
        ("errors", {8, 9}),
        ("split errors", {3}),
        ("wide errors", {4}),
        ("split wide errors", set()),
    ],
    ids=("table", "whole tiles", "split tiles", "wide tiles", "split wide tiles"),
)
def test_convolution_and_the_gradient_of_its_input(interpreted, name, halves):
    for number, errors in enumerate(interpreted[name]):
        assert max(errors) < (3e-4 if number in halves else 3e-7), number


def test_tiles_are_split_where_the_tests_mean_them_to_be(interpreted):
    assert interpreted["slots"] == [0] * 10
    assert min(interpreted["split slots"]) > 1
    assert interpreted["wide slots"] == [0] * 5
    assert min(interpreted["split wide slots"]) > 1


def test_aspp(interpreted):
    *single, half = interpreted["aspp"]
    assert max(single + interpreted["split aspp"] + interpreted["wide aspp"]) < 3e-7
    assert half < 5e-4  # rounded twice


def test_pooled_branch(interpreted):
    *single, half = interpreted["pooling"]
    assert max(single) < 3e-7
    assert half < 5e-4


def test_sums_of_joined_weights(interpreted):
    assert max(interpreted["joined"]) < 3e-7


def test_nans_reach_the_outputs_that_read_them(interpreted):
    assert interpreted["nan"]


def test_epilogue_over_torch_s_convolution(interpreted):
    assert interpreted["epilogue"] < 3e-7
    single, half = interpreted["torch"]
    assert max(single) < 3e-7
    assert max(half) < 1e-3  # torch rounds before the epilogue


ALIGNED = ("channels", "outputs", "out_stride", "weight_stride")
"""Integers that are multiples of 16 in the cases here."""


def compiled(kernel, arch, config, constants, kinds):
    """A kernel as the launcher would have it compiled for that GPU."""
    options = {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
    return compile_kernel(kernel, arch, kinds, constants, options, ALIGNED)


def convolution(arch, precision, config, *, branches=1, residual=True, split=True, **constants):
    """The forward kernel with all that takes registers, but for what the arguments turn off."""
    dtype = "*bf16" if precision == "16" else "*fp32"
    form = arguments.Form(
        *config[:3],
        SUMMED=1,
        MIXED=True,
        SPLIT=split,
        WHOLE=False,
        ALIGNED=True,
        TRANSPOSED=False,
        PRECISION=common.input_precision(precision),
        ACTIVATION="silu",
    )
    vectors = ("*fp32",) * branches
    kinds = {
        "x": dtype,
        "out": dtype,
        "weights": (dtype,) * branches,
        "weight_taps": (1,) + ("i32",) * (branches - 1) if branches > 1 else ("i32",),
        "biases": vectors,
        "scales": vectors,
        "shifts": vectors,
        "residual": dtype if residual else None,
        "workspace": "*fp32" if split else None,
        "tables": arguments.Tables(*["*i32"] * 3),
        "image": integers(arguments.Image, stride_y=1, stride_x=1),
        "columns": integers(arguments.Columns),
    }
    constants = {"FORM": form._replace(**constants)}
    return compiled(launches.kernel_of(config), arch, config, constants, kinds)


def check_budget(kernel, arch):
    used = resources(kernel)
    assert used["REG"] <= 255
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"
    assert kernel.metadata.shared <= LEAST_SHARED[arch]
    assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"]), "sums depend on the order"


def check_matrix_units(kernel, arch):
    """That architecture's instructions, fed by copies that run ahead."""
    ptx = kernel.asm["ptx"]
    assert matrix_products(kernel, arch) > 0
    assert re.search(r"cp\.async\.cg\.shared\.global .*, 0x10, ", ptx), "16 bytes at a time"


def check_weights_by_tma(kernel, arch):
    assert ("cp.async.bulk.tensor.3d" in kernel.asm["ptx"]) == (arch >= 90)


@pytest.mark.parametrize(
    ("arch", "precision", "entry"),
    [
        *((arch, precision, 0) for arch in ARCHS for precision in ("16", "tf32", "tf32x3")),
        (90, "16", 1),  # the widest whose sums are one block
    ],
)
def test_widest_block_fits(arch, precision, entry):
    config = configs.TABLE["forward", f"sm_{arch}", precision][entry]
    kernel = convolution(arch, precision, config, branches=4)
    check_budget(kernel, arch)
    check_matrix_units(kernel, arch)
    check_weights_by_tma(kernel, arch)
    # One loop over taps and channels: a tap's copies do not wait for the last one's products.
    assert kernel.asm["ttgir"].count("scf.for") == 1


@each_arch
def test_gradient_of_the_input_reads_the_weight_in_place(arch):
    config = configs.TABLE["forward", f"sm_{arch}", "16"][0]
    kernel = convolution(arch, "16", config, residual=False, TRANSPOSED=True, ACTIVATION="")
    check_budget(kernel, arch)
    check_matrix_units(kernel, arch)
    check_weights_by_tma(kernel, arch)


@pytest.mark.parametrize(("arch", "entry"), [(80, 0), (90, 2), (90, -1)])
def test_summed_branches_fit(arch, entry):
    """A loop for each; the widest block that `candidates` admits, and the narrowest."""
    config = configs.TABLE["forward", f"sm_{arch}", "16"][entry]
    kernel = convolution(
        arch, "16", config, branches=4, residual=False, SUMMED=4, WHOLE=True, ACTIVATION=""
    )
    check_budget(kernel, arch)
    check_weights_by_tma(kernel, arch)


@pytest.mark.parametrize("arch", [80, 90])
def test_channels_that_tma_cannot_address(arch):
    config = configs.TABLE["forward", f"sm_{arch}", "16"][0]
    kernel = convolution(arch, "16", config, ALIGNED=False)
    check_budget(kernel, arch)
    assert "cp.async.bulk.tensor" not in kernel.asm["ptx"]


@pytest.mark.parametrize("arch", [80, 90])
def test_reduction_fits(arch):
    config = configs.TABLE["forward", f"sm_{arch}", "16"][0]
    vectors = ("*fp32",) * 4
    kinds = {
        "workspace": "*fp32",
        "out": "*bf16",
        "biases": vectors,
        "scales": vectors,
        "shifts": vectors,
        "residual": "*bf16",
        "reductions": "*i32",
        "pixels": "*i32",
        "columns": integers(arguments.Columns),
    }
    constants = {
        "BM": config.BM,
        "BN": config.BN,
        "ROWS": launches.REDUCED_ROWS,
        "SUMMED": 4,
        "ACTIVATION": "silu",
    }
    small = configs.Config(*config[:3], num_warps=4, num_stages=3)
    check_budget(compiled(kernels.reduce_kernel, arch, small, constants, kinds), arch)


@pytest.mark.parametrize(("arch", "precision"), [(80, "tf32x3"), (90, "16"), (100, "16")])
def test_projection_fits(arch, precision, monkeypatch):
    monkeypatch.setattr(common, "NO_GPU", common.Device(f"sm_{arch}", 1))
    config = aspp_projection.project_config(1 << 16, 1024, 256, torch.device("cpu"), precision)
    dtype = "*bf16" if precision == "16" else "*fp32"
    constants = {
        "BM": config.BM,
        "BN": config.BN,
        "BK": config.BK,
        "ALIGNED": True,
        "PRECISION": common.input_precision(precision),
        "ACTIVATION": "silu",
    }
    kinds = {
        "z": dtype,
        "weight": dtype,
        "out": dtype,
        "pool_bias": "*fp32",
        "operands": Operands(scale="*fp32", shift="*fp32"),
        "sizes": integers(arguments.Product),
    }
    kernel = compiled(aspp_projection.project_kernel, arch, config, constants, kinds)
    check_budget(kernel, arch)
    assert ("cp.async.bulk.tensor.2d" in kernel.asm["ptx"]) == (arch >= 90)


@each_arch
@pytest.mark.parametrize("dtype", ["*bf16", "*fp32"])
def test_pooled_branch_fits(arch, dtype):
    small = configs.Config(0, 0, 0, num_warps=4, num_stages=3)
    kinds = {"x": dtype, "out": dtype, "pixels": "i32", "channels": "i32"}
    constants = {"BP": image_pooling.PIXELS, "BC": image_pooling.CHANNELS}
    check_budget(compiled(image_pooling.mean_kernel, arch, small, constants, kinds), arch)
    kinds = {
        "x": dtype,
        "weight": dtype,
        "out": dtype,
        "operands": Operands(scale="*fp32", shift="*fp32"),
        "sizes": integers(arguments.Vector),
    }
    constants = {
        "BN": image_pooling.OUTPUTS,
        "BK": image_pooling.INPUTS,
        "ACTIVATION": "silu",
    }
    check_budget(compiled(image_pooling.vector_kernel, arch, small, constants, kinds), arch)


def test_fields_of_a_group_are_specialized_as_single_arguments():
    """The compiled kernels here rely on it: 1 and multiples of 16 are known, None is constant."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import create_function_from_signature

    kernel, backend = aspp_projection.project_kernel, CUDABackend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    t = torch.empty(64)
    sizes = arguments.Product(33, 1, 32, 21, 1040, 2)
    _, specialized, _ = bind(t, t, t, None, Operands(scale=t[1:]), sizes, *[1] * 6)
    types, values = zip(*specialized[4:6], strict=True)
    assert types[0] == Operands("constexpr", "*fp32", "constexpr", "constexpr")
    assert values[0] == Operands(None, "", None, None)
    assert types[1] == arguments.Product("i32", "constexpr", *["i32"] * 4)
    assert values[1] == arguments.Product("", 1, "D", "", "D", "")


def test_float32_is_as_exact_as_the_user_wants_torch_s_convolution():
    script = """
import torch
from fastseg.kernels.common import precision_of
cudnn = torch.backends.cudnn
print(precision_of(torch.bfloat16), precision_of(torch.float32))
cudnn.allow_tf32 = False
print(precision_of(torch.float32))
cudnn.allow_tf32 = True
print(precision_of(torch.float32))
cudnn.conv.fp32_precision = "ieee"
print(precision_of(torch.float32))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["16", "tf32", "tf32x3", "tf32", "tf32x3"], done.stderr


def test_block_shapes_follow_the_size_of_the_output():
    """Of the table, with no GPU here the row of sm_80."""
    branch = Branch((3, 3), (1, 1), (12, 12), (12, 12))
    narrow, many = (
        launches.launch_of(torch.empty(n, 256, 33, 33, dtype=torch.float16), outputs, [branch])
        for n, outputs in ((1, 21), (8, 256))
    )
    assert launches.choose(narrow).BN == 32
    assert launches.choose(many) == configs.TABLE["forward", "sm_80", "16"][0]
    other = configs.TABLE["forward", "sm_80", "16"][1]
    configs.tuned[many] = other
    try:
        assert launches.choose(many) == other
    finally:
        del configs.tuned[many]
