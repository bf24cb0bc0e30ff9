"""Convolutions with few outputs as one product for all taps: interpreted, compiled, their plans."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("triton")
from fastseg.kernels import common
from fastseg.kernels.conv import configs, few_outputs, tap_products
from fastseg.kernels.conv.epilogue import Operands
from fastseg.kernels.conv.geometry import Branch, Sizes
from tests.triton_aot import (
    LEAST_SHARED,
    compile_kernel,
    each_arch,
    integers,
    matrix_products,
    resources,
    run_interpreted,
)

ONE = (1, 1)


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(Path(__file__).parent / "few_outputs_interpreted.py")


def test_values(interpreted):
    for number, (error, half) in enumerate(
        zip(interpreted["errors"], interpreted["half"], strict=True)
    ):
        assert error < (3e-4 if half else 3e-7), number


def test_sums_of_branches(interpreted):
    *single, half = interpreted["summed"]
    assert max(single) < 3e-7
    assert half < 3e-4


def test_ops_take_this_form_where_it_is_chosen(interpreted):
    assert max(interpreted["ops"]) < 3e-7


def test_nans_reach_the_outputs_that_read_them(interpreted):
    assert interpreted["nan"]


def of_rate(rate, kernel=3):
    return Branch((kernel, kernel), ONE, (rate * (kernel // 2),) * 2, (rate, rate))


@pytest.mark.parametrize(
    ("sizes", "branches", "outputs"),
    [
        (Sizes(2, 9, 8, 9, 8), [of_rate(2), of_rate(4), of_rate(12)], 5),
        (Sizes(1, 13, 7, 13, 7), [of_rate(3, 5)], 21),
        (Sizes(2, 9, 8, 5, 4), [Branch((3, 3), ONE, (0, 0), (2, 2))], 3),
    ],
    ids=str,
)
def test_products_that_outputs_read_are_computed_once(sizes, branches, outputs):
    """Every pixel and tap that an output reads, in every channel and chunk, by one program."""
    way = few_outputs.Way(configs.Config(16, 32, 16, 4, 2), 2)
    plan = few_outputs.build(sizes, tuple(branches), outputs, 5, way)
    columns = plan.columns.tolist()
    computed = Counter()
    for tile, first, part, low, high in plan.items.tolist():
        assert (low, high) == ((0, 2), (2, 5))[part]
        for pixel in set(plan.pixels[tile].tolist()):
            for row in {tuple(row) for row in columns[first : first + 32]}:
                computed[pixel, row, part] += 1
    assert set(computed.values()) == {1}
    pitch = few_outputs.pitch_of(outputs)
    weight_rows = {column: (b, row) for b, row, column in columns}
    wanted = set()
    for first, dy, dx in plan.taps.tolist():
        for n in range(sizes.batch):
            for y, x in np.ndindex(sizes.out_height, sizes.out_width):
                if 0 <= y + dy < sizes.height and 0 <= x + dx < sizes.width:
                    pixel = (n * sizes.height + y + dy) * sizes.width + x + dx
                    wanted |= {(pixel, first + co) for co in range(outputs)}
    assert wanted <= {(pixel, row[2]) for pixel, row, _ in computed}
    first_column = 0
    for b, branch in enumerate(branches):  # and each column is of the tap that it stands for
        for tap in range(branch.taps):
            for co in range(outputs):
                column = first_column + tap * pitch + co
                if column in weight_rows:
                    assert weight_rows[column] == (b, co * branch.taps + tap)
        first_column += branch.taps * pitch


def test_what_falls_into_padding_is_not_multiplied():
    """DeepLab v2's four rates on 41 x 41: 58 % of all pairs of pixels and taps are live."""
    branches = tuple(of_rate(rate) for rate in (6, 12, 18, 24))
    tiles = few_outputs.input_tiles(Sizes(8, 41, 41, 41, 41), branches, 128)
    assert tiles.taps.sum() * 128 / (36 * 8 * 41 * 41) < 0.68


def product(arch, precision, config, **constants):
    dtype = "*bf16" if precision == "16" else "*fp32"
    form = tap_products.ProductForm(
        *config[:3], WHOLE=False, ALIGNED=True, PRECISION=common.input_precision(precision)
    )
    kinds = {
        "x": dtype,
        "weights": (dtype,) * 4,
        "products": "*fp32",
        "items": "*i32",
        "pixels": "*i32",
        "columns": "*i32",
        "maps": integers(tap_products.Maps),
    }
    options = {
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        "enable_fp_fusion": True,
    }
    return compile_kernel(
        tap_products.tap_products_kernel,
        arch,
        kinds,
        {"FORM": form._replace(**constants)},
        options,
        ("channels", "stride"),
    )


def check_budget(kernel, arch):
    used = resources(kernel)
    assert used["REG"] <= 255
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"
    assert kernel.metadata.shared <= LEAST_SHARED[arch]
    assert not re.search(r"\b(atom|red)\.", kernel.asm["ptx"]), "sums depend on the order"


@each_arch
@pytest.mark.parametrize("precision", ["16", "tf32", "tf32x3"])
def test_products_fit(arch, precision, monkeypatch):
    monkeypatch.setattr(common, "NO_GPU", common.Device(f"sm_{arch}", 1))
    config = few_outputs.candidates(torch.device("cpu"), precision)[0]
    kernel = product(arch, precision, config)
    check_budget(kernel, arch)
    assert matrix_products(kernel, arch) > 0
    copies = r"cp\.async\.cg\.shared\.global .*, 0x10, "
    assert re.search(copies, kernel.asm["ptx"]), "16 bytes at a time"


@each_arch
def test_shifts_fit(arch):
    vectors = ("*fp32",) * 3
    kinds = {
        "products": "*fp32",
        "out": "*bf16",
        "operands": Operands(shift="*fp32", residual="*bf16"),
        "more_shifts": vectors,
        "taps": "*i32",
        "count": "i32",
        "maps": integers(tap_products.Maps),
    }
    constants = {"PIXELS": few_outputs.PIXELS, "CHANNELS": 32, "PITCH": 24, "ACTIVATION": "relu"}
    options = {"num_warps": 4, "enable_fp_fusion": True}
    kernel = compile_kernel(
        tap_products.add_taps_kernel, arch, kinds, constants, options, ("stride",)
    )
    check_budget(kernel, arch)
    assert resources(kernel)["REG"] <= 64, "as many warps as hide the loads' time"
    assert re.search(r"ld\.global\S*\.v4", kernel.asm["ptx"]), "16 bytes at a time"
