"""The host's time for calls on a GPU, measured on a machine without one.

python -m benchmarks.host_time [--calls N] [--csv FILE]

The calls run to the driver, which a stand-in replaces (benchmarks.driver_stand_in): its launches
return at once, so that what is left is the time of Python, torch's dispatcher and allocator, and
the launchers. The allocator is the CPU's. "ordinary" is a call that nothing was prepared for:
checks, choices and Triton's own binding and launcher, all of whose caches are warm. "prepared" is
the same call the next time. Times are microseconds of the thread, the least of rounds. Nothing is
computed: this says nothing about a GPU's time. It needs gcc, Triton and a torch without CUDA.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import driver_stand_in

ROUNDS = 50
POOLED = "aspp with pooling, batch 1"
"""Without a prepared call torch computes its pooled branch, here on the CPU."""


class Result(NamedTuple):
    """A row of the table, times in microseconds."""

    case: str
    launches: int
    ordinary: float | None
    prepared: float


def cases() -> dict[str, Callable[[], torch.Tensor]]:
    """The calls by their names, of bfloat16 in channels_last on maps of 33 x 33."""
    import fastseg
    from fastseg.ops.conv.aspp import ASPPBranch

    torch.manual_seed(0)
    last = torch.channels_last

    def randn(*shape: int) -> torch.Tensor:
        t = torch.randn(shape, dtype=torch.bfloat16)
        return t.contiguous(memory_format=last) if t.dim() == 4 else t

    def branch(channels: int, kernel: int, dilation: int) -> ASPPBranch:
        return ASPPBranch(randn(256, channels, kernel, kernel), randn(256), randn(256), dilation)

    x, weight = randn(8, 256, 33, 33), randn(256, 256, 3, 3)
    scale, shift = randn(256), randn(256)
    deep, deep_weight = randn(1, 2048, 33, 33), randn(256, 2048, 3, 3)
    branches = [branch(2048, 1, 1), *(branch(2048, 3, rate) for rate in (6, 12, 18))]
    project, pool = branch(4 * 256, 1, 1), branch(2048, 1, 1)
    project_pooled = branch(5 * 256, 1, 1)

    def conv(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return fastseg.atrous_conv2d(
            x, weight, dilation=12, scale=scale, shift=shift, activation="relu"
        )

    return {
        "atrous_conv2d 256->256 r12, batch 8": lambda: conv(x, weight),
        "atrous_conv2d 2048->256 r12, batch 1, split": lambda: conv(deep, deep_weight),
        "its op, as compiled graphs call it": lambda: torch.ops.fastseg.atrous_conv2d(
            x, weight, None, scale, shift, None, (1, 1), (12, 12), (12, 12), 1, "relu"
        ),
        "aspp 2048->256, batch 1": lambda: fastseg.aspp(deep, branches, project),
        POOLED: lambda: fastseg.aspp(deep, branches, project_pooled, pool=pool),
    }


def microseconds(run: Callable[[], object], calls: int) -> float:
    """The time of a call, the least of rounds of so many."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(calls):
            run()
        rounds.append((time.thread_time() - start) / calls * 1e6)
    return min(rounds)


def measure(driver: driver_stand_in.Driver, calls: int) -> list[Result]:
    """The rows of all cases."""
    from fastseg._core import prepared_calls

    results = []
    launcher = prepared_calls.launcher
    for name, run in cases().items():
        with torch.no_grad():
            run()
            driver.launches()
            run()
            launches = len(driver.launches())
            with driver.silent():
                prepared = microseconds(run, calls)
                prepared_calls.forget()
                prepared_calls.launcher = None  # so that nothing is recorded
                ordinary = None if name == POOLED else microseconds(run, max(1, calls // 10))
                prepared_calls.launcher = launcher
        results.append(Result(name, launches, ordinary, prepared))
    return results


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=50, help="calls of a round")
    parser.add_argument("--csv", type=Path, help="a file for the rows")
    options = parser.parse_args()
    driver = driver_stand_in.install()
    results = measure(driver, options.calls)
    print(f"{'case':<46}{'launches':>9}{'ordinary':>10}{'prepared':>10}  us of the host")
    for r in results:
        ordinary = "" if r.ordinary is None else f"{r.ordinary:.1f}"
        print(f"{r.case:<46}{r.launches:>9}{ordinary:>10}{r.prepared:>10.1f}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Result._fields)
            writer.writerows(results)


if __name__ == "__main__":
    main()
