"""How depthwise convolutions are cut into programs: tiles of pixels, channels, taps, registers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton

from fastseg.kernels.conv.arguments import Tile, Tiling

LARGEST_KERNEL = 7
"""Most taps along an axis: the loads of a row of more would not fit registers."""

MOST_TAPS_AT_ONCE = 9
"""Most taps whose sums a program of the weight's gradient keeps in registers."""

TILE_PIXELS = 64
"""Number of pixels of a program, where the channels are contiguous."""

BLOCK = 512
"""Number of pixels of a plane in a program, where the pixels are contiguous."""

CHANNEL_BYTES = 128
"""Bytes of a pixel's channels in a program, where the channels are contiguous."""

RUNS = 2048
"""Number of programs of the weight's gradient: a few for each multiprocessor, each with a long
run."""

OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}

Pair = Sequence[int]
"""Two integers, (vertical, horizontal)."""


def choose_tile(size: Pair, phases: Pair) -> Tile:
    """A tile of TILE_PIXELS, as square as the phases of an output of `size` are large."""
    rows, columns = (triton.next_power_of_2(-(-n // p)) for n, p in zip(size, phases, strict=True))
    columns = min(columns, 8 if rows >= 8 else TILE_PIXELS // rows)
    rows = min(rows, TILE_PIXELS // columns)
    return Tile(TILE_PIXELS // (rows * columns), rows, columns)


def count_phases(size: Pair, stride: Pair, dilation: Pair, transposed: bool) -> tuple[int, ...]:
    """On each axis, the distance of outputs one of whose taps reads what another's does."""
    return tuple(
        min(n, d if transposed else d // math.gcd(d, s))
        for n, s, d in zip(size, stride, dilation, strict=True)
    )


def channel_blocks(channels: int, dtype: torch.dtype, widest: int) -> dict[str, int]:
    """The channels of a program, and the number that a thread reads at once, `widest` at most."""
    return {
        "VECTOR": math.gcd(channels, min(widest, 16 // dtype.itemsize)),
        "CHANNELS": CHANNEL_BYTES // dtype.itemsize,
    }


def weight_grad_taps(kernel_size: Pair) -> dict[str, int]:
    """The rows of a kernel, and their width, that a program of the weight's gradient takes."""
    height, width = kernel_size
    return {"KW": width, "TAP_ROWS": height if height * width <= MOST_TAPS_AT_ONCE else 1}


def largest_registers(kernel_width: int) -> int:
    """Registers that the loads of a row of taps take; left to itself, ptxas spills to save some."""
    return 128 if kernel_width <= 5 else 168


def tiling_of(images: int, size: Pair, phases: Pair, tile: Tile) -> Tiling:
    """How the outputs of `images` images, each of `size`, are cut into tiles."""
    rows, columns = (triton.cdiv(n, p) for n, p in zip(size, phases, strict=True))
    tiles_y, tiles_x = triton.cdiv(rows, tile.ROWS), triton.cdiv(columns, tile.COLUMNS)
    groups = triton.cdiv(phases[0] * phases[1], tile.PHASES)
    return Tiling(*phases, tiles_y, tiles_x, images * groups * tiles_y * tiles_x)


def plane_blocks(size: Pair, phases: Pair) -> int:
    """The number of BLOCKs of a plane, its rows padded to whole phases."""
    return triton.cdiv(phases[0] * triton.cdiv(size[0], phases[0]) * size[1], BLOCK)


def runs_of(blocks: int, tiles: int) -> int:
    """The number of runs that the tiles are cut into for each of so many blocks of channels."""
    return min(tiles, triton.cdiv(RUNS, blocks))


def lanes(constants: dict[str, int]) -> int:
    """Number of pixels that all threads of a program hold, one vector of `channel_blocks` each."""
    return min(
        TILE_PIXELS, 32 * OPTIONS["num_warps"] * constants["VECTOR"] // constants["CHANNELS"]
    )
