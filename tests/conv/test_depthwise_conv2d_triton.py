"""Depthwise convolution's Triton kernels without a GPU: interpreted, and compiled."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from tests.triton_aot import (
    NAMES,
    SHARED_BYTES,
    compile_kernel,
    each_arch,
    integers,
    resources,
    run_interpreted,
)

REGISTERS = 1 << 16  # of a multiprocessor
KERNELS = {
    # of the kernels: dtype, (kh, kw), transposed
    "channels_last_kernel": [
        (torch.bfloat16, (3, 3), False),
        (torch.float32, (5, 5), True),
    ],
    "contiguous_kernel": [(torch.bfloat16, (3, 3), False)],
    "channels_last_weight_grad_kernel": [
        (torch.bfloat16, (3, 3), False),
        (torch.float32, (5, 5), False),
    ],
    "contiguous_weight_grad_kernel": [(torch.float16, (3, 3), False)],
}
CASES = [(name, *case) for name, cases in KERNELS.items() for case in cases]


@pytest.fixture(scope="module")
def interpreted():
    return run_interpreted(Path(__file__).parent / "depthwise_conv2d_interpreted.py")


def test_interpreted_kernels_agree_with_torch(interpreted):
    assert len(interpreted["errors"]) == 13
    for name, errors in interpreted["errors"].items():
        assert set(errors) == {"fused", "plain", "by input", "by weight"}
        assert max(errors.values()) < (5e-4 if "half" in name else 5e-7), (name, errors)


def test_nan_reaches_exactly_what_reads_it(interpreted):
    assert interpreted["nan"] == [True, True]


def test_the_weight_gradient_is_the_same_twice(interpreted):
    assert interpreted["repeated"] == [True, True]


@pytest.mark.parametrize("dilation", [1, 2, 3, 12, 40])
@pytest.mark.parametrize("size", [(33, 33), (1, 70), (5, 128), (64, 2)])
def test_tiles_hold_whole_phases(size, dilation):
    """Neither more lanes than a program has, nor a tile twice as large as its phases."""
    from fastseg.kernels.conv.depthwise_tiles import TILE_PIXELS, choose_tile, count_phases

    phases = count_phases(size, (1, 1), (dilation, dilation), transposed=False)
    tile = choose_tile(size, phases)
    assert tile.PHASES * tile.ROWS * tile.COLUMNS == TILE_PIXELS
    for n, p, side in zip(size, phases, tile[1:], strict=True):
        assert side < 2 * -(-n // p) or side == 1


@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 6), (2, 1), (2, 6), (3, 4), (4, 2)])
def test_outputs_of_a_phase_share_what_they_read(stride, dilation):
    """And are as close as that allows."""
    from fastseg.kernels.conv.depthwise_tiles import count_phases

    size, strides, dilations = (100, 100), (stride, 1), (dilation, 1)
    apart, _ = count_phases(size, strides, dilations, transposed=False)
    shared = [n for n in range(1, 100) if n * stride % dilation == 0]
    assert apart == shared[0]
    assert count_phases(size, strides, dilations, transposed=True) == (dilation, 1)
    assert count_phases((3, 5), (1, 1), (6, 6), transposed=False) == (3, 5)


@functools.cache
def compiled(name: str, arch: int, dtype: torch.dtype, kernel_size: tuple[int, int], transposed):
    """A kernel as its launcher would have it compiled, at rate 12 on 33 x 33 with an epilogue."""
    from fastseg.kernels.conv import depthwise_conv2d as kernels
    from fastseg.kernels.conv import depthwise_tiles as tiles
    from fastseg.kernels.conv.arguments import Tiling, Window
    from fastseg.kernels.conv.epilogue import Operands

    kernel = getattr(kernels, name)
    values = f"*{NAMES[dtype]}"
    of_weight = "weight_grad" in name
    signature = dict.fromkeys(kernel.arg_names, "i32")
    signature |= dict.fromkeys(("x", "weight", "grad"), values)
    signature |= {
        "out": "*fp32" if of_weight else values,
        "operands": Operands(*["*fp32"] * 3, values),
        "window": integers(Window, stride_y=1, stride_x=1),
        "tiling": integers(Tiling),
    }
    kh, kw = kernel_size
    last = name.startswith("channels_last")
    options = tiles.OPTIONS
    if of_weight:
        constants = tiles.weight_grad_taps(kernel_size)
    else:
        constants = {"KH": kh, "KW": kw, "TRANSPOSED": transposed, "ACTIVATION": "hardswish"}
    if last and not of_weight:
        options = options | {"maxnreg": tiles.largest_registers(kw)}
    if last:
        blocks = tiles.channel_blocks(960, dtype, 4 if of_weight else 8)
        constants |= blocks | {"TILE": tiles.choose_tile((33, 33), (12, 12))}
    else:
        constants |= {"BLOCK": tiles.BLOCK}
    if of_weight:
        constants["LANES"] = tiles.lanes(blocks) if last else 32 * options["num_warps"]
    return compile_kernel(kernel, arch, signature, constants, options), options["num_warps"]


@each_arch
@pytest.mark.parametrize(("name", "dtype", "kernel_size", "transposed"), CASES, ids=str)
def test_kernels_fit_registers(name, dtype, kernel_size, transposed, arch):
    kernel, warps = compiled(name, arch, dtype, kernel_size, transposed)
    used = resources(kernel)
    programs = 1 if "weight_grad" in name else 2  # of a multiprocessor, at least
    assert used["REG"] * warps * 32 * programs <= REGISTERS
    assert used["STACK"] == used["LOCAL"] == 0, "spilled"
    assert kernel.metadata.shared <= SHARED_BYTES[arch] // 8


@each_arch
def test_channels_last_is_read_and_written_16_bytes_at_a_time(arch):
    for case in KERNELS["channels_last_kernel"]:
        ptx = compiled("channels_last_kernel", arch, *case)[0].asm["ptx"]
        for access in ("ld", "st"):
            lines = re.findall(rf"{access}\.global[^;]*;", ptx)
            assert lines
            assert all(re.search(r"\.v4\.b32|\.b128|\.v2\.b64", line) for line in lines), access


@each_arch
def test_the_weight_gradient_keeps_its_sums_in_threads(arch):
    """No barrier before the last tile: those of the loop would cost more than its reads."""
    case = KERNELS["channels_last_weight_grad_kernel"][0]
    ptx = compiled("channels_last_weight_grad_kernel", arch, *case)[0].asm["ptx"]
    loop = ptx[: ptx.rindex("ld.global")]
    assert "bar.sync" not in loop
    assert "shfl" not in loop
    assert "bar.sync" in ptx


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_which_convolutions_are_depthwise(groups):
    """Ops of all convolutions leave those of as many groups as channels to the depthwise ops."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from fastseg.kernels.conv import atrous_conv2d, weight_grad

    class Calls(TorchDispatchMode):
        names: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "fastseg":
                self.names.append(func._opname)
            return func(*args, **(kwargs or {}))

    x, weight, one = torch.randn(1, 12, 7, 8), torch.randn(12, 12 // groups, 3, 3), (1, 1)
    geometry = (one, one, one, groups)
    with Calls() as calls:
        calls.names.clear()
        atrous_conv2d.atrous_conv2d(x, weight, *[None] * 4, *geometry, "")
        atrous_conv2d.atrous_conv2d_input_grad(x, weight, (7, 8), *geometry)
        weight_grad.atrous_conv2d_weight_grad(x, x, (3, 3), *geometry)
    names = ["depthwise_conv2d", "depthwise_conv2d_input_grad", "depthwise_conv2d_weight_grad"]
    assert calls.names == (names if groups == 12 else [])
