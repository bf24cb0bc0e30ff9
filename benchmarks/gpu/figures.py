"""How a case is checked and measured on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from statistics import median

import torch
from torch import Tensor

from benchmarks import atrous_conv2d_gpu
from benchmarks.gpu.worker import Job, Outcome
from benchmarks.harness import Case, copy_bandwidth, measure

OURS = "fastseg"
SECONDS = 0.15
"""Least seconds of a case's runs."""
HOST_ROUNDS = 20


@lru_cache(maxsize=1)
def copy_speed() -> float:
    """Returns the bytes a second of a large copy."""
    return copy_bandwidth("cuda")


@lru_cache(maxsize=1)
def product_speed() -> float:
    """Returns the FLOPs a second of a large matrix product."""
    return atrous_conv2d_gpu.product_speed(torch.bfloat16)


def host_seconds(run: Callable[[], object]) -> float:
    """Returns the median time after which a call returns to the host, nothing being queued."""
    times = []
    for _ in range(HOST_ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def figures(case: Case, tensor_cores: bool = False) -> Outcome:
    """Checks and measures a case.

    Args:
        case: the case; candidates of torch.compile are left out, which take too long to compile.
        tensor_cores: whether the case's FLOPs are a floor, at the speed of a matrix product.

    Returns:
        A row for each candidate: the GPU's time with the host ahead of it, the time of a call with
        nothing queued, and that after which the host goes on.
    """
    outcome = Outcome()
    try:
        case.check()
    except AssertionError as error:
        outcome.red = " ".join(str(error).split()) or "results differ"
    candidates = [c for c in case.candidates if not c.name.startswith("torch.compile")]
    case = replace(case, candidates=candidates, check=lambda: None)
    calls = replace(case, seconds={})
    measure([case], "cuda", SECONDS, warm_up=2, gpu_alone=True)
    measure([calls], "cuda", SECONDS / 3, warm_up=0)
    floor = case.floor_bytes / copy_speed()
    if tensor_cores and case.flops:
        floor = max(floor, case.flops / product_speed())
    for candidate in candidates:
        ordered = sorted(case.seconds[candidate.name])
        p20, p80 = (ordered[int(q * (len(ordered) - 1))] for q in (0.2, 0.8))
        times = {
            "gpu_us": case.median(candidate.name),
            "p20_us": p20,
            "p80_us": p80,
            "call_us": calls.median(candidate.name),
            "host_us": host_seconds(candidate.run),
            "floor_us": floor,
        }
        row = {name: f"{1e6 * seconds:.1f}" for name, seconds in times.items()}
        outcome.rows.append({"candidate": candidate.name, **row})
    return outcome


def job(name: str, make: Callable[[], Case], seconds: float = 20.0, modelled: str = "") -> Job:
    """Returns the job of a case that needs no gradients of its own."""

    @torch.no_grad()
    def run() -> Outcome:
        torch.manual_seed(0)
        torch.cuda.empty_cache()
        return figures(make(), tensor_cores=name.startswith(TENSOR_CORES))

    return Job(name, run, seconds, modelled)


TENSOR_CORES = ("aspp", "atrous_conv2d", "gradient of")
"""Beginnings of names of cases whose FLOPs are products of matrices."""


def as_on_cpu(op: Callable[..., Tensor], *arguments: object, tolerance: float = 1e-5) -> None:
    """Checks that an op computes on the GPU what it computes on the CPU."""
    on_cpu = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
    actual, expected = op(*arguments).cpu(), op(*on_cpu)
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
