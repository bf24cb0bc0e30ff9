"""The weight gradient's Triton kernels without a GPU: interpreted, compiled; and their plan."""

from __future__ import annotations

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch

from tests.triton_aot import (
    LEAST_SHARED,
    NAMES,
    SHARED_BYTES,
    compile_kernel,
    each_arch,
    integers,
    matrix_products,
    resources,
    run_interpreted,
)
from tests.triton_sass import fewest_instructions

DTYPES = {
    # Of the large tile and of the small one.
    "16": (torch.bfloat16, torch.float16),
    "tf32": (torch.float32, torch.float32),
    "tf32x3": (torch.float32, torch.float32),
}
GEOMETRIES = {
    # images, (H, W), kernel, stride, padding, dilation
    "33 x 33, rate 6": (8, (33, 33), (3, 3), (1, 1), (6, 6), (6, 6)),
    "one image, rate 18": (1, (33, 33), (3, 3), (1, 1), (18, 18), (18, 18)),
    "only the centre is live": (2, (5, 7), (3, 3), (1, 1), (7, 9), (7, 9)),
    "stride, an axis without taps": (3, (20, 11), (5, 1), (2, 3), (8, 0), (4, 2)),
    "kernel of five": (2, (17, 12), (5, 3), (1, 2), (9, 4), (5, 3)),
}


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(Path(__file__).parent / "atrous_conv2d_weight_grad_interpreted.py")


def test_interpreted_kernels_sum_over_the_live_pairs(interpreted):
    assert len(interpreted["errors"]) == 12
    for name, error in interpreted["errors"].items():
        assert error < (5e-4 if "half" in name else 4e-7), name


def test_nan_reaches_exactly_the_taps_that_read_it(interpreted):
    assert interpreted["nan"] == {"x": True, "grad": True}


def test_pieces_are_added_by_a_second_kernel_in_the_same_order(interpreted):
    assert interpreted["launches"] == {"half": 1, "several pieces": 2}
    assert interpreted["repeated"]


def make_geometry(images, size, kernel, stride, padding, dilation):
    """Its sizes and its branch."""
    from fastseg.kernels.conv.geometry import Branch, Sizes

    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    out = tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    return Sizes(images, *size, *out), Branch(kernel, stride, padding, dilation)


def pairs_of_the_convolution(sizes, branch):
    """All (tap, output pixel, pixel of x) by the definition."""
    images, height, width, out_height, out_width = sizes
    (sy, sx), (py, px), (dy, dx) = branch.stride, branch.padding, branch.dilation
    for tap, (a, b) in enumerate(itertools.product(*map(range, branch.kernel_size))):
        for image in range(images):
            for i, j in itertools.product(range(out_height), range(out_width)):
                y, x = i * sy - py + a * dy, j * sx - px + b * dx
                if 0 <= y < height and 0 <= x < width:
                    read = (image * height + y) * width + x
                    yield tap, (image * out_height + i) * out_width + j, read


@pytest.mark.parametrize("tiles", [1, 16])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_plan_holds_each_live_pair_once(name, tiles):
    """As the kernel reads it, in the arithmetic of its integers."""
    from fastseg.kernels.conv.weight_grad_plan import make_pieces

    def divide(n, factor, shift):
        return (((factor % (1 << 32) * n) >> 32) + n) >> shift

    sizes, branch = make_geometry(*GEOMETRIES[name])
    _, height, width, out_height, out_width = sizes
    plan = make_pieces(sizes, branch, tiles, pixels=32, programs=132)
    seen = []
    for row in plan.pieces:
        first, last, slot, x_corner, corner, w, w_factor, w_shift, h, h_factor, h_shift = row[:11]
        tap = next(t for t in itertools.count() if slot < plan.slots[t + 1])
        assert first % 32 == 0
        for pixel in range(first, last):
            y = divide(pixel, w_factor, w_shift)
            image = divide(y, h_factor, h_shift)
            x, y = pixel - y * w, y - image * h
            out = corner + image * out_height * out_width + y * out_width + x
            read = y * branch.stride[0] * width + x * branch.stride[1]
            seen.append((tap, out, x_corner + image * height * width + read))
    assert sorted(row[2] for row in plan.pieces) == list(range(plan.slots[-1]))
    lengths = [row[1] - row[0] for row in plan.pieces]
    assert lengths == sorted(lengths, reverse=True)
    assert sorted(seen) == sorted(pairs_of_the_convolution(sizes, branch))


def test_the_live_share_is_that_of_the_pairs():
    from fastseg.kernels.conv.weight_grad_plan import live_share

    rate = {6: 0.772, 12: 0.574, 18: 0.405}
    for r, share in rate.items():
        geometry = make_geometry(8, (33, 33), (3, 3), (1, 1), (r, r), (r, r))
        assert live_share(*geometry) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("divisor", [1, 2, 3, 5, 33, 64, 65, 641, (1 << 20) + 1, (1 << 31) - 1])
def test_reciprocals_divide_every_int32(divisor):
    from fastseg.kernels.conv.weight_grad_plan import reciprocal

    factor, shift = reciprocal(divisor)
    assert -(1 << 31) <= factor < 1 << 31
    multiples = [m * divisor for m in (1, 2, 1000, ((1 << 31) - 1) // divisor)]
    for n in [0, 1, (1 << 31) - 1, *multiples, *[m - 1 for m in multiples]]:
        if n < 1 << 31:
            high = (factor % (1 << 32) * n) >> 32
            assert (high + n) >> shift == n // divisor
            assert high + n < 1 << 32


@pytest.mark.parametrize(
    ("steps", "tiles", "expected"),
    [
        ([18] * 9, 16, [1] * 9),  # short: a cut would cost more than it saves
        ([2000] * 9, 16, None),  # long: as good as balanced
        ([4000, 100, 100], 16, None),
        ([0, 0, 0], 1, [1, 1, 1]),
    ],
)
def test_taps_are_cut_where_it_pays(steps, tiles, expected):
    from fastseg.kernels.conv.makespan import makespan
    from fastseg.kernels.conv.weight_grad_plan import STORE_STEPS, share_out

    cuts = share_out(steps, tiles, 132)
    if expected is not None:
        assert cuts == expected
        return
    shares = zip(steps, cuts, strict=True)
    lengths = [s / n + STORE_STEPS for s, n in shares for _ in range(n * tiles)]
    time = makespan(sorted(lengths, reverse=True), 132)
    assert time < 1.1 * sum(steps) * tiles / 132 + STORE_STEPS


@functools.cache
def compiled(arch: int, precision: str, size: int, registers: int | None = None):
    """A block shape, and weight_grad_kernel for it, held to so many registers or to none."""
    from fastseg.kernels.common import input_precision
    from fastseg.kernels.conv import weight_grad as kernels
    from fastseg.kernels.conv.arguments import Channels, Rows
    from fastseg.kernels.conv.configs import TABLE

    config = TABLE["weight_grad", f"sm_{arch}", precision][size]
    kernel = kernels.weight_grad_kernel
    values = f"*{NAMES[DTYPES[precision][size]]}"
    signature = {
        "x": values,
        "grad": values,
        "out": "*fp32",
        "pieces": "*i32",
        "rows": integers(Rows),
        "channels": integers(Channels),
    }
    constants = config._asdict()
    options = {k: constants.pop(k) for k in ("num_warps", "num_stages")} | kernels.OPTIONS
    options |= {} if registers is None else {"maxnreg": registers}
    del constants["programs"]
    constants |= {
        "COLUMNS": kernels.plans.COLUMNS,
        "VECTOR": kernels.VECTOR,
        "PRECISION": input_precision(precision),
    }
    aligned = ["inputs", "slot_stride", "out_stride"]
    return config, compile_kernel(kernel, arch, signature, constants, options, aligned)


@each_arch
@pytest.mark.parametrize("size", [0, 1])
@pytest.mark.parametrize("precision", DTYPES)
def test_tiles_fit_registers_and_shared_memory(precision, size, arch):
    tile, kernel = compiled(arch, precision, size)
    used = resources(kernel)
    assert used["REG"] * tile.num_warps * 32 * tile.programs <= 1 << 16
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"
    most = LEAST_SHARED[arch] if arch == 80 else SHARED_BYTES[arch] // tile.programs
    assert kernel.metadata.shared <= most
    assert matrix_products(kernel, arch) > 0


@each_arch
@pytest.mark.parametrize("precision", DTYPES)
def test_large_tiles_need_fewer_registers_than_there_are(precision, arch):
    """Another Triton may need some more. The compiler takes all if it may, though it need not."""
    most = 216 if (arch, precision) == (80, "tf32x3") else 200
    used = resources(compiled(arch, precision, 0)[1])
    if used["REG"] > most:
        used = resources(compiled(arch, precision, 0, most)[1])
    assert used["REG"] <= most
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"


MOST_INSTRUCTIONS = {
    # For each matrix instruction: a warp's HMMA of 16 x 8 sums, four warps' HGMMA of 64 x 256.
    (80, "16"): 5.2,
    (80, "tf32"): 6.0,
    (80, "tf32x3"): 8.0,
    (90, "16"): 107,
    (90, "tf32"): 124,
}


@pytest.mark.parametrize(("arch", "precision"), MOST_INSTRUCTIONS)
def test_the_main_loop_issues_no_more_than_its_products_take(precision, arch):
    """The matrix units of sm_80 work 8 cycles on an HMMA, those of sm_90 128 on an HGMMA."""
    _, kernel = compiled(arch, precision, 0)
    marked = {80: "HMMA", 90: "HGMMA"}[arch]
    most = MOST_INSTRUCTIONS[arch, precision]
    assert 0.9 * most < fewest_instructions(kernel, marked) <= most


@each_arch
@pytest.mark.parametrize("size", [0, 1])
def test_steps_are_read_by_asynchronous_copies_of_16_bytes(size, arch):
    _, kernel = compiled(arch, "16", size)
    ptx = kernel.asm["ptx"]
    copies = re.findall(r"cp\.async\.c[ag]\.shared\.global[^;]*, (0x)?([0-9a-f]+),", ptx)
    assert copies
    assert {int(size, 16) for _, size in copies} == {16}
    assert not re.findall(r"ld\.global[^;]*\.v[24]", ptx), "channels that pass through registers"


@each_arch
def test_float32_takes_three_tf32_terms_where_torch_asks_for_them(arch):
    from fastseg.kernels.common import precision_of

    products = {}
    before = torch.backends.cudnn.allow_tf32
    for allowed in (True, False):
        torch.backends.cudnn.allow_tf32 = allowed
        try:
            precision = precision_of(torch.float32)
        finally:
            torch.backends.cudnn.allow_tf32 = before
        tile, kernel = compiled(arch, precision, 1)
        step = tile.BM * tile.BN * tile.BK / tile.num_warps
        products[allowed] = matrix_products(kernel, arch) / step
    # The compiler may repeat the loop's body.
    assert products[False] > 1.2 * products[True]


@each_arch
def test_the_sum_of_pieces_does_not_spill(arch):
    from fastseg.kernels.conv import weight_grad as kernels

    kernel = kernels.sum_pieces_kernel
    signature = {"sums": "*fp32", "out": "*bf16", "slots": "*i32"}
    signature |= {"elements": "i32", "in_channels": "i32"}
    compiled = compile_kernel(
        kernel,
        arch,
        signature,
        {"BLOCK": kernels.SUM_BLOCK},
        {"num_warps": 4} | kernels.OPTIONS,
        ["elements", "in_channels"],
    )
    used = resources(compiled)
    assert used["REG"] <= 64
    assert used["STACK"] == used["LOCAL"] == 0
    assert re.search(r"ld\.global[^;]*\.v4", compiled.asm["ptx"])
