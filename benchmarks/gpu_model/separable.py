"""Models a separable convolution in one launch, beside a depthwise and a pointwise launch.

python -m benchmarks.gpu_model.separable [--csv FILE]

The depthwise kernel's work is counted (docs/gpu_model.md) on one image, and taken as many times for
more. A matrix product is modelled by its tiles: the longest of its multiplications, of what its
blocks read of the second-level cache, and of what comes from memory, for the best of TILES and
SPLITS. One launch computes the depthwise values of a tile of pixels anew for each block of outputs.
Everything is channels_last, 3x3, bfloat16, on an H200. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_model.__main__ import show, works
from benchmarks.gpu_model.cases import CHUNK, Case, depthwise_conv2d
from benchmarks.gpu_model.devices import H200
from benchmarks.gpu_model.model import ADDED, SCHEDULERS, Work, seconds

PRODUCTS = 1710
"""Multiply-adds of 16 bits in a cycle of a multiprocessor: 790 TFLOP/s of the whole GPU."""

BYTES = 2
"""Of a value."""

STEP = 64
"""Channels of a step of a matrix product."""

TILES = tuple(itertools.product((32, 64, 128), (64, 128, 256)))
"""Pixels and outputs of a block."""

SPLITS = (1, 2, 4, 8, 16)
"""Numbers of parts of the channels, whose sums a second launch adds up."""

CLUSTER = 2
"""Blocks of a plain matrix product that share what one of them reads of x."""


@dataclass(frozen=True)
class Shape:
    """A separable convolution that keeps the size of its square maps."""

    network: str
    channels: int
    outputs: int
    size: int
    rate: int
    images: int = 1

    @property
    def pixels(self) -> int:
        return self.images * self.size**2

    @property
    def bytes_in(self) -> int:
        return self.pixels * self.channels * BYTES

    @property
    def bytes_out(self) -> int:
        return self.pixels * self.outputs * BYTES

    @property
    def bytes_weight(self) -> int:
        return self.channels * self.outputs * BYTES

    @property
    def fits(self) -> bool:
        """Whether x, the depthwise values and the output stay in the second-level cache."""
        return 2 * self.bytes_in + self.bytes_out + self.bytes_weight <= H200.l2_bytes

    def halo(self, pixels: int) -> float:
        """Pixels of x that a tile reads for each of its own: those of a phase lie together."""
        if math.ceil(self.size / self.rate) ** 2 <= pixels:
            return 1.0
        side = math.sqrt(pixels)
        return ((side + 2) / side) ** 2


SHAPES = (
    *(Shape("ASPP", 2048, 256, 33, rate) for rate in (6, 12, 18)),
    *(Shape("ASPP", 2048, 256, 65, rate) for rate in (12, 24, 36)),
    Shape("decoder", 304, 256, 129, 1),
    Shape("decoder", 256, 256, 129, 1),
    Shape("Xception", 728, 728, 33, 1),
    Shape("Xception", 728, 728, 65, 2),
    Shape("MobileNet", 384, 96, 65, 1),
)
BATCHES = (1, 8)

SHORT = Shape("", 728, 728, 33, 1)
"""A convolution whose depthwise threads take three pixels each: so few that their weights cost as
much as in a tile of a matrix product, in which 256 threads share 128 pixels by 64 channels."""


@dataclass(frozen=True)
class Depthwise:
    """How a fused launch computes its depthwise values.

    Attributes:
        instructions: of a warp, for each value.
        overlaps: whether matrix products run meanwhile, which takes warps of their own for them.
    """

    instructions: float
    overlaps: bool


@functools.cache
def depthwise_of_image(channels: int, size: int, rate: int) -> Work:
    """What the depthwise kernel asks of a GPU for one image."""
    call = partial(depthwise_conv2d, size, rate, torch.bfloat16, torch.channels_last)
    chunks = channels / CHUNK
    traced = (24, 28) if chunks > 28 else (math.floor(chunks), math.ceil(chunks + 0.5))
    (work,) = works(Case("depthwise_conv2d", f"{channels}", call, traced, chunks, 0.0))
    return work


def depthwise(shape: Shape) -> tuple[float, float]:
    """Seconds of the depthwise launch, and a warp's instructions for each value."""
    work = depthwise_of_image(shape.channels, shape.size, shape.rate)
    work = replace(work, **{n: getattr(work, n) * shape.images for n in ADDED if n != "launches"})
    return seconds(work, H200, shape.fits)[0], work.issued / (shape.pixels * shape.channels)


def product(shape: Shape, tile: tuple[int, int], split: int, fused: Depthwise | None) -> float:
    """Seconds of a launch of matrix products, and of the one that adds up its splits."""
    rows, columns = tile
    blocks = math.ceil(shape.pixels / rows) * math.ceil(shape.outputs / columns) * split
    steps = math.ceil(shape.channels / STEP / split)
    rounds = math.ceil(blocks / H200.multiprocessors)
    values = rows * STEP
    cycles, read = values * columns / PRODUCTS, rows / CLUSTER
    memory = shape.bytes_weight
    if fused:
        issue = values * fused.instructions / SCHEDULERS
        cycles = max(cycles, issue) if fused.overlaps else cycles + issue
        read = rows * shape.halo(rows)
        memory += shape.bytes_in
    if not shape.fits:
        memory = shape.bytes_weight + shape.bytes_in + shape.bytes_out
    sums = shape.pixels * shape.outputs * 4 * split if split > 1 else 0
    times = (
        rounds * steps * cycles / H200.hertz,
        (blocks * steps * STEP * BYTES * (read + columns) + sums) / H200.l2_bandwidth,
        memory / H200.dram_bandwidth,
    )
    time = H200.launch_seconds + max(times)
    if split > 1:
        time += H200.launch_seconds + (sums + shape.bytes_out) / H200.l2_bandwidth
    return time


def fastest(shape: Shape, fused: Depthwise | None = None) -> float:
    """Seconds of the best tile and split."""
    splits = [s for s in SPLITS if s == 1 or shape.channels >= 2 * STEP * s]
    return min(product(shape, tile, split, fused) for tile in TILES for split in splits)


def epilogue(shape: Shape) -> float:
    """Seconds of a launch that reads and writes the output."""
    bandwidth = H200.l2_bandwidth if shape.fits else H200.dram_bandwidth
    return H200.launch_seconds + 2 * shape.bytes_out / bandwidth


def row(shape: Shape) -> dict[str, object]:
    """The table's row of a shape: microseconds, and the two launches' time over one's (gain)."""
    first, own = depthwise(shape)
    two = first + fastest(shape)
    short = depthwise(SHORT)[1]
    words = f"{shape.images}x{shape.channels}x{shape.size}x{shape.size} to {shape.outputs}"
    table = {
        "shape": f"{shape.network} {words}, rate {shape.rate}",
        "instructions": f"{32 * own:.0f}",
        "depthwise_us": f"{1e6 * first:.1f}",
        "two_us": f"{1e6 * two:.1f}",
        "epilogue_apart_us": f"{1e6 * (two + epilogue(shape)):.1f}",
    }
    forms = {
        "at_best": Depthwise(own, overlaps=True),
        "overlapped": Depthwise(short, overlaps=True),
        "waiting": Depthwise(short, overlaps=False),
    }
    for name, form in forms.items():
        time = fastest(shape, form)
        table |= {f"{name}_us": f"{1e6 * time:.1f}", f"{name}_gain": f"{two / time:.2f}"}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--csv", type=Path, help="writes the rows there too")
    options = parser.parse_args()
    table = [row(replace(shape, images=images)) for shape in SHAPES for images in BATCHES]
    show(table, list(table[0]))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
