"""The modelled time, in microseconds, of what a convolution consists of: here, and in cuDNN.

A program's step multiplies BM x BK by BK x BN. It takes as long as its products on the matrix
units, or as its operands from the second-level cache, whichever is longer. cuDNN multiplies all
taps, the dead ones too, in tiles that it may cut as it likes. Beyond the share of the peak in
:mod:`fastseg.kernels.conv.rates` nothing is counted against it: it waits for no operands, and parts
of tiles cost it nothing. A launch costs both the same.

**Nothing of this was measured on a GPU.**
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastseg.kernels.common import device_of
from fastseg.kernels.conv.configs import Config
from fastseg.kernels.conv.cuts import Times
from fastseg.kernels.conv.geometry import Branch, Sizes
from fastseg.kernels.conv.rates import Rates, rates_of

PASSES = {"16": 1, "tf32": 2, "tf32x3": 6}
"""What a product takes beside one in 16 bits."""

ITEM_BYTES = {"16": 2, "tf32": 4, "tf32x3": 4}
"""Bytes of a number in a tensor."""

CUDNN_ROWS = 128
CUDNN_COLUMNS = (256, 128, 64, 32)
CUDNN_PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
"""The tiles of pixels by channels that cuDNN may take, and into how many it may cut their sums."""


def step_time(config: Config, precision: str, rates: Rates) -> float:
    """The time of a step of a program, while all multiprocessors have one."""
    products = (
        2 * config.BM * config.BN * config.BK * PASSES[precision] / (rates.product * rates.loop)
    )
    operands = (config.BM + config.BN) * config.BK * ITEM_BYTES[precision] / rates.l2
    return max(products, operands)


def times_of(config: Config, precision: str, device: torch.device) -> Times:
    """The times of a launch's programs."""
    rates, outputs = rates_of(device), config.BM * config.BN
    store, slot = outputs * ITEM_BYTES[precision] / rates.l2, outputs * 4 / rates.l2
    return Times(
        step_time(config, precision, rates),
        rates.start,
        store,
        slot,
        slot / device_of(device).multiprocessors,
        rates.launch,
    )


def moved_time(moved: float, device: torch.device) -> float:
    """The time in which all multiprocessors read or write so many bytes of the cache."""
    return moved / (rates_of(device).l2 * device_of(device).multiprocessors)


def bytes_time(
    sizes: Sizes,
    branches: Sequence[Branch],
    channels: int,
    outputs: int,
    precision: str,
    rates: Rates,
    summed: bool = False,
) -> float:
    """The time in which the input, the weights and the output pass the memory once.

    The output has `outputs` channels for each branch, or if `summed` for all.
    """
    numbers = sizes.batch * sizes.height * sizes.width * channels
    numbers += outputs * channels * sum(b.taps for b in branches)
    numbers += outputs * sizes.batch * sizes.out_pixels * (1 if summed else len(branches))
    return numbers * ITEM_BYTES[precision] / rates.memory


def cudnn_efficiency(rows: int, columns: int, processors: int) -> float:
    """The share of cuDNN's products that do not fill up tiles and rounds of tiles."""
    best = 0.0
    for width in CUDNN_COLUMNS:
        tiles = -(-rows // CUDNN_ROWS) * -(-columns // width)
        full = rows * columns / (tiles * CUDNN_ROWS * width)
        for parts in CUDNN_PARTS:
            rounds = -(-tiles * parts // processors)
            best = max(best, full * tiles * parts / (rounds * processors))
    return best


def cudnn_time(
    sizes: Sizes, branch: Branch, channels: int, outputs: int, precision: str, device: torch.device
) -> float:
    """The time of one dense convolution of torch, its launch included."""
    rates, processors = rates_of(device), device_of(device).multiprocessors
    rows = sizes.batch * sizes.out_pixels
    flops = 2.0 * rows * outputs * channels * branch.taps
    speed = {"16": rates.product, "tf32": rates.product / PASSES["tf32"], "tf32x3": rates.plain}
    full = speed[precision] * processors * rates.cudnn
    products = flops / (full * cudnn_efficiency(rows, outputs, processors))
    moved = bytes_time(sizes, [branch], channels, outputs, precision, rates)
    return rates.launch + max(products, moved)
