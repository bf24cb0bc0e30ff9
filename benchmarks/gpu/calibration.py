"""Measures the constants of benchmarks.gpu_model by tiny calls of torch.

A row's note is the constant beside the model's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.cases import machine, usable
from benchmarks.gpu.figures import product_speed
from benchmarks.gpu.worker import Job, Outcome
from benchmarks.gpu_model.devices import DEVICES
from benchmarks.harness import Candidate, Case, copy_bandwidth, measure

__all__ = ["jobs", "machine", "usable"]

LAUNCHES = 200
CYCLES = 10_000_000


def gpu_seconds(run: Callable[[], object]) -> float:
    """Returns the median time of a call on the GPU."""
    case = Case("", "", [Candidate("", run)], lambda: None, 0)
    measure([case], "cuda", min_seconds=0.2, gpu_alone=True)
    return case.median("")


def graph_seconds(run: Callable[[], object]) -> float:
    """Returns the time of each of many launches in a CUDA graph."""
    run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(LAUNCHES):
            run()
    return gpu_seconds(graph.replay) / LAUNCHES


def dram_bandwidth() -> float:
    """Returns the bytes a second of a copy of 256 MiB, read and written."""
    return copy_bandwidth("cuda")


def l2_bandwidth() -> float:
    """Returns the bytes a second that a kernel reads and writes in the second-level cache.

    It is the slope between two sizes, so that the time of a launch is left out.
    """
    seconds, sizes = [], (2 << 20, 10 << 20)
    for size in sizes:
        source = torch.ones(size // 4, device="cuda")
        seconds.append(graph_seconds(partial(torch.neg, source, out=torch.empty_like(source))))
    return 2 * (sizes[1] - sizes[0]) / (seconds[1] - seconds[0])


def launch_seconds() -> float:
    """Returns the time between the ends of two launches that do next to nothing."""
    x = torch.zeros(32, device="cuda")
    return graph_seconds(lambda: x.add_(1))


def hertz() -> float:
    """Returns the cycles that a waiting kernel counts in a second."""
    return CYCLES / gpu_seconds(lambda: torch.cuda._sleep(CYCLES))


CONSTANTS: dict[str, Callable[[], float]] = {
    "dram_bandwidth": dram_bandwidth,
    "l2_bandwidth": l2_bandwidth,
    "launch_seconds": launch_seconds,
    "hertz": hertz,
    "bf16_flops": product_speed,
}


@torch.no_grad()
def constant(name: str) -> Outcome:
    """Measures a constant."""
    value = CONSTANTS[name]()
    guess = getattr(DEVICES[0], name, None)
    beside = f", {guess:.3g} in the model of {DEVICES[0].name}" if guess else ""
    return Outcome([{"candidate": f"{value:.4g}{beside}"}])


def jobs(group: str) -> list[Job]:
    """Returns a job for each constant of the only group, "calibration"."""
    return [Job(name, lambda name=name: constant(name)) for name in CONSTANTS]
