"""Block shapes of the atrous convolution's kernels, as data.

What stands in the table fits a GPU's registers and shared memory without spilling, as the compiler
reports it; nothing here was measured on a GPU. Which of a row's entries a launch takes follows
from an estimate of its time, unless `autotune` has measured them on the device at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch


class Config(NamedTuple):
    """BM pixels by BN output channels by BK input channels of a program's step."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int

    def step(self, precision: str) -> float:
        """A step's time, where 128 x 256 x 64 of 16 bits take 1.

        That shape reads what L2 delivers while the matrix units work; smaller ones wait for L2.
        """
        passes = {"16": 1, "tf32": 2, "tf32x3": 6}[precision]
        product = self.BM * self.BN * self.BK * passes / (128 * 256 * 64)
        wide = 1 if precision == "16" else 2
        return max(product, (self.BM + self.BN) * self.BK * wide / ((128 + 256) * 64))


# (architecture, precision): the widest first.
TABLE = {
    ("sm_80", "16"): (
        Config(128, 128, 64, 8, 3),
        Config(128, 64, 64, 4, 3),
        Config(64, 64, 64, 4, 3),
        Config(128, 32, 64, 4, 3),
    ),
    ("sm_80", "tf32"): (
        Config(128, 128, 32, 8, 3),
        Config(128, 64, 32, 8, 3),
        Config(128, 32, 32, 4, 3),
    ),
    ("sm_80", "tf32x3"): (
        Config(64, 128, 32, 8, 3),
        Config(64, 64, 32, 8, 3),
        Config(64, 32, 32, 4, 3),
    ),
    ("sm_90", "16"): (
        Config(128, 256, 64, 8, 4),
        Config(128, 128, 64, 8, 4),
        Config(64, 256, 64, 8, 4),
        Config(128, 64, 64, 8, 4),
        Config(128, 32, 64, 4, 4),
    ),
    ("sm_90", "tf32"): (
        Config(128, 256, 32, 8, 4),
        Config(128, 128, 32, 8, 3),
        Config(128, 64, 32, 8, 3),
        Config(128, 32, 32, 4, 3),
    ),
    ("sm_90", "tf32x3"): (
        Config(128, 128, 32, 8, 3),
        Config(128, 64, 32, 8, 3),
        Config(128, 32, 32, 4, 3),
    ),
}
TABLE |= {("sm_100", precision): TABLE["sm_90", precision] for precision in ("16", "tf32x3")}
TABLE["sm_100", "tf32"] = (Config(128, 256, 32, 8, 3), *TABLE["sm_90", "tf32"][1:])

tuned: dict[tuple, Config] = {}
"""What `autotune` found, by launch; of this process."""


def architecture(device: torch.device) -> str:
    """The row of the table; consumer GPUs have sm_80's matrix instructions and shared memory."""
    if device.type != "cuda":
        return "sm_80"  # the interpreter
    major = torch.cuda.get_device_capability(device)[0]
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_80")


def candidates(
    device: torch.device, precision: str, outputs: int, wide: bool = True
) -> tuple[Config, ...]:
    """The table's entries for an output of so many channels.

    One that is more than twice as wide as need be is left out, unless nothing else is left; if not
    `wide`, also those of more than 128 x 128 sums, which leave few registers for anything else.
    """
    row = TABLE[architecture(device), precision]
    fitting = [c for c in row if 2 * outputs > c.BN and (wide or c.BM * c.BN <= 128 * 128)]
    return tuple(fitting) or row[-1:]


def measure(run: Callable[[], None], repeats: int = 20) -> float:
    """Milliseconds a run on the current stream, the least of three rounds."""
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
