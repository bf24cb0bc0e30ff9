"""Block shapes of the atrous convolution's matrix products, as data: one table for all kernels.

What stands in the table fits a GPU's registers and shared memory without spilling, as the compiler
reports it; nothing here was measured on a GPU. Which of a row's entries a launch takes follows
from an estimate of its time, unless `autotune` has measured them on the device at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton

from fastseg.kernels.common import device_of


class Config(NamedTuple):
    """The block shape of a kernel: a program's step multiplies BM x BK by BK x BN.

    Attributes:
        BM: rows of the sums: pixels in the forward kernel, output channels in weight_grad_kernel.
        BN: columns of the sums: output channels, or input channels in weight_grad_kernel.
        BK: what a step sums over: input channels, or pixels in weight_grad_kernel.
        num_warps: number of a program's warps.
        num_stages: number of steps in flight, one of which is multiplied.
        programs: number of programs that a multiprocessor holds at a time.
    """

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int
    programs: int = 1


FORWARD, WEIGHT_GRAD = "forward", "weight_grad"

WIDE = 192
"""Number of pixels of :mod:`fastseg.kernels.conv.forward_wide`, a kernel of its own."""

# (kernel, architecture, precision): the widest first; two of each for the weight's gradient.
# sm_80's rows fit the 99 KB of shared memory that sm_86, sm_89 and sm_120 have.
TABLE = {
    (FORWARD, "sm_80", "16"): (
        Config(128, 128, 64, 8, 3),
        Config(128, 64, 64, 4, 3),
        Config(64, 64, 64, 4, 3),
        Config(128, 32, 64, 4, 3),
    ),
    (FORWARD, "sm_80", "tf32"): (
        Config(128, 128, 32, 8, 3),
        Config(128, 64, 32, 8, 3),
        Config(128, 32, 32, 4, 3),
    ),
    (FORWARD, "sm_80", "tf32x3"): (
        Config(64, 128, 32, 8, 3),
        Config(64, 64, 32, 8, 3),
        Config(64, 32, 32, 4, 3),
    ),
    (FORWARD, "sm_90", "16"): (
        Config(WIDE, 256, 64, 8, 4),
        Config(128, 256, 64, 8, 4),
        Config(128, 128, 64, 8, 4),
        Config(64, 256, 64, 8, 4),
        Config(128, 64, 64, 8, 4),
        Config(128, 32, 64, 4, 4),
    ),
    (FORWARD, "sm_90", "tf32"): (
        Config(128, 256, 32, 8, 4),
        Config(128, 128, 32, 8, 3),
        Config(128, 64, 32, 8, 3),
        Config(128, 32, 32, 4, 3),
    ),
    (FORWARD, "sm_90", "tf32x3"): (
        Config(128, 128, 32, 8, 3),
        Config(128, 64, 32, 8, 3),
        Config(128, 32, 32, 4, 3),
    ),
    (WEIGHT_GRAD, "sm_80", "16"): (
        Config(128, 128, 64, 8, 4),
        Config(64, 128, 32, 4, 4, 2),
    ),
    (WEIGHT_GRAD, "sm_80", "tf32"): (
        Config(128, 128, 32, 8, 3),
        Config(64, 128, 32, 8, 3),
    ),
    (WEIGHT_GRAD, "sm_80", "tf32x3"): (
        Config(128, 128, 32, 8, 3),
        Config(64, 128, 16, 8, 4, 2),
    ),
    (WEIGHT_GRAD, "sm_90", "16"): (
        Config(128, 256, 64, 8, 4),
        Config(64, 128, 64, 8, 4, 2),
    ),
    (WEIGHT_GRAD, "sm_90", "tf32"): (
        Config(128, 256, 32, 8, 4),
        Config(64, 128, 32, 8, 4, 2),
    ),
    (WEIGHT_GRAD, "sm_90", "tf32x3"): (
        Config(128, 128, 32, 8, 3),
        Config(64, 128, 32, 8, 3),
    ),
}
TABLE |= {
    (kernel, "sm_100", precision): tuple(config for config in row if config.BM != WIDE)
    for (kernel, architecture, precision), row in TABLE.items()
    if architecture == "sm_90"
}
TABLE[FORWARD, "sm_100", "tf32"] = (
    Config(128, 256, 32, 8, 3),
    *TABLE[FORWARD, "sm_90", "tf32"][1:],
)

SMALL_TILE_COST = 1.5
"""Time of a small tile of the weight's gradient for each of its elements, where one of a large tile
takes 1: the small one reads more."""

tuned: dict[tuple, Config] = {}
"""The block shapes that `autotune` found in this process, by launch."""


def candidates(
    device: torch.device, precision: str, outputs: int, wide: bool = True
) -> tuple[Config, ...]:
    """The table's entries for an output of so many channels.

    One that is more than twice as wide as need be is left out, unless nothing else is left; if not
    `wide`, also those of more than 128 x 128 sums or of several blocks of them, which leave few
    registers for anything else.
    """
    row = TABLE[FORWARD, device_of(device).architecture, precision]
    if not wide:
        row = [c for c in row if c.BM != WIDE and c.BM * c.BN <= 128 * 128]
    fitting = [c for c in row if 2 * outputs > c.BN]
    return tuple(fitting or row[-1:])


def weight_grad_config(
    architecture: str, precision: str, out_channels: int, in_channels: int
) -> Config:
    """The entry for the weight's gradient that wastes the least on channels that do not exist."""
    large, small = TABLE[WEIGHT_GRAD, architecture, precision]

    def padded(config: Config) -> int:
        columns = triton.cdiv(in_channels, config.BN) * config.BN
        return triton.cdiv(out_channels, config.BM) * config.BM * columns

    return large if padded(large) <= SMALL_TILE_COST * padded(small) else small


def measure(run: Callable[[], None], repeats: int = 20) -> float:
    """Milliseconds that a run takes on the current stream, the least of three rounds."""
    run()
    rounds = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        rounds.append(start.elapsed_time(end) / repeats)
    return min(rounds)
