"""What nvcc makes of csrc/cuda: registers, stack and vector instructions of each kernel.

Registers decide how many threads fit on a multiprocessor, and so how many bytes are in flight; a
stack means spills to memory. None of it needs a GPU.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.cuda_on_cpu.build import CSRC
from tests.cuda_on_cpu.objects import (
    ARCHS,
    CUOBJDUMP,
    NVCC,
    bodies,
    compiled,
    compiled_all,
    dump,
)

# Of 65536 registers for 2048 threads: the 2x2 kernels keep 5 blocks of 256 threads resident, the
# kernels for any window, which read less at once, at least 3, as do the simplex of 8 dimensions in
# double, the Gaussian's pass, whose threads hold 16 sums and read shared memory, and a blur of
# three axes, whose threads wait for nine rows at once; the lattice's look-ups, which wait for
# memory, 5; the filters 4.
CEILINGS = {
    "_2x2": 48,
    "_any": 80,
    "_bid": 40,
    "_fetch": 40,
    "_pick": 40,
    "_kernel": 40,
    "_simplex": 80,
    "_hash": 48,
}
CEILINGS |= {"_order": 40, "_reduce": 48, "_blur": 80, "_splat": 64, "_slice": 48, "_gradient": 64}
CEILINGS |= {"_taps": 40, "_pass": 80, "_tile": 64, "_unary": 40, "_positions": 40, "_fold": 40}
CEILINGS |= {"_argmax": 96, "_factors": 40, "_mixing": 40, "_mix": 40, "_pairs": 64}
CEILINGS |= {"_affinity": 40, "_step": 48}
CEILINGS |= {"_pixels": 96, "_classes": 96, "_corners": 96, "_gather": 64, "_total": 40}
CEILINGS |= {"_counts": 96}
# Depthwise convolutions keep their weights in registers: two blocks of 192 threads are resident,
# and of the planes' at least two of 256.
CEILINGS |= {"_same": 168, "_planes": 128}
# In double the powers of a softmax, which the library computes, take a third more; packs of a
# lattice's rows are twice as wide, and still 4 blocks are resident.
IN_DOUBLE = {"_pixels": 128, "_classes": 128, "_corners": 128, "_blur": 48, "_reduce": 56}


pytestmark = pytest.mark.skipif(
    not (NVCC and CUOBJDUMP), reason="needs nvcc and cuobjdump (which the triton package holds)"
)


@pytest.fixture(scope="module")
def objects() -> list[Path]:
    return compiled_all()


def test_registers_and_stack(objects):
    pattern = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)"
    text = dump(objects, "--dump-resource-usage")
    kernels = re.findall(pattern, text)
    assert len(kernels) % len(ARCHS) == 0
    assert len(kernels) >= 40 * len(ARCHS)
    for name, registers, stack, local in kernels:
        (kind,) = [k for k in CEILINGS if re.search(rf"[a-z]{k}(I|E|P)", name)]
        in_double = re.search(rf"[a-z]{kind}Id", name)
        ceiling = IN_DOUBLE.get(kind, CEILINGS[kind]) if in_double else CEILINGS[kind]
        assert int(registers) <= ceiling, f"{name} takes {registers} registers"
        assert int(stack) == int(local) == 0, f"{name} has a stack of {stack} bytes"


@pytest.mark.parametrize("arch", ARCHS)
def test_no_product_of_a_simplex_is_fused_with_a_sum(objects, arch):
    """common/crf/permutohedral.h: which simplex a point lies in depends on each rounding."""
    source = CSRC / "cuda/crf/permutohedral_simplex.cu"
    sass = dump([compiled(source)], "--dump-sass", "--gpu-architecture", f"sm_{arch}")
    assert re.search(r"\bFMUL\b", sass)
    assert re.search(r"\bDMUL\b", sass)
    assert not re.search(r"\b[FD]FMA", sass)


@pytest.mark.parametrize("arch", ARCHS)
def test_depthwise_kernels_of_packs_move_16_bytes_an_instruction(objects, arch):
    names = ("depthwise_conv2d_channels_last", "depthwise_weight_grad_channels_last")
    sources = [CSRC / f"cuda/conv/{name}.cu" for name in names]
    text = dump([compiled(s) for s in sources], "--dump-sass", "--gpu-architecture", f"sm_{arch}")
    kernels = {name: body for name, body in bodies(text).items() if "Li3E" in name}
    assert len(kernels) == 3 * 2 + 3
    for name, body in kernels.items():
        copies = re.findall(r"\bLDGSTS\.E\S*", body)
        assert copies, name
        assert all(".128" in copy for copy in copies), name
        if "weight_grad" not in name:
            assert set(re.findall(r"\bSTG\.E\S*", body)) == {"STG.E.128"}, name


class Kernel2x2(NamedTuple):
    """A kernel for 2x2 windows: its op, whether its vectors are full ones, its instructions."""

    name: str
    op: str
    full: bool
    sass: str

    @property
    def accesses(self) -> int:
        """Vectors on the plane's side of a tile: rows or taps."""
        return 4 if self.full else 2


@functools.cache
def kernels_2x2(arch: str) -> list[Kernel2x2]:
    objects = [compiled(s) for s in sorted((CSRC / "cuda").rglob("max_*pool*.cu"))]
    text = dump(objects, "--dump-sass", "--gpu-architecture", f"sm_{arch}")
    kernels = []
    for name, body in bodies(text).items():
        if found := re.search(r"\d(max_[a-z0-9_]+)_2x2I(\w+)Li(\d)ELb", name):
            size = {"f": 4, "j": 4, "d": 8, "m": 8}.get(found[2], 2)
            kernels.append(Kernel2x2(name, found[1], int(found[3]) * size == 16, body))
    return kernels


@pytest.mark.parametrize("arch", ARCHS)
def test_2x2_kernels_move_16_bytes_an_instruction(objects, arch):
    assert len(kernels_2x2(arch)) == 12 + 9 + 9
    for k in kernels_2x2(arch):
        sides = (int(k.full), k.accesses)  # of the pooled tensor and of the plane
        loads, stores = sides if k.op == "max_unpool2d" else sides[::-1]
        assert len(re.findall(r"\bLDG\.E\.EF\.128", k.sass)) >= loads, k.name
        assert len(re.findall(r"\bSTG\.E\.128", k.sass)) >= stores, k.name


@pytest.mark.parametrize("arch", ARCHS)
def test_a_tile_is_in_flight_before_its_first_use(objects, arch):
    for k in kernels_2x2(arch):
        if k.op == "max_unpool2d":
            continue
        loads = [m.start() for m in re.finditer(r"\bLDG\.E\.EF\.128", k.sass)]
        between = k.sass[loads[0] : loads[k.accesses - 1]]
        assert not re.search(r"\b(FSETP|DSETP|FSEL|SEL|STG|BRA)\b", between), k.name


# Where the rows of a lattice are read from and written to.
ROWS = {
    "permutohedral_reduce": ("LDG.E", "STG.E"),
    "permutohedral_blur": ("LDG.E", "STG.E"),
    "permutohedral_tile_splat": ("STS", "LDS", "STG.E"),
    "permutohedral_slice": ("LDG.E", "STS", "LDS"),
    "lattice_mean_field_tile": ("LDG.E", "STS", "LDS", "STG.E"),
}


@pytest.mark.parametrize("arch", ARCHS)
def test_rows_move_16_bytes_an_instruction(objects, arch):
    files = ("permutohedral_blur", "permutohedral_filter", "lattice_mean_field")
    paths = [compiled(CSRC / "cuda/crf" / f"{name}.cu") for name in files]
    text = dump(paths, "--dump-sass", "--gpu-architecture", f"sm_{arch}")
    found = 0
    for name, body in bodies(text).items():
        # Rows of one channel are scalars; Q that shared memory does not hold goes through no LDS.
        kernel = next((k for k in ROWS if k in name), None)
        if kernel is None or "Li1EEE" in name or "ELb0ELb0E" in name:
            continue
        found += 1
        for access in ROWS[kernel]:
            assert re.search(rf"\b{re.escape(access)}\.128", body), f"{name}: {access}"
    assert found == 2 + 3 + 2 + 2 + 2 + 7
