"""Interleaved timing of candidates that must first agree with each other.

Candidates take turns within one run, so that a slow moment of the machine meets all of them, and
the median of each counts. A case whose check fails is not timed: the run ends with an error.
"""

from __future__ import annotations

import csv
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

CYCLES_A_SECOND = 2e9
"""Largest number of cycles of a GPU in a second."""

CSV_COLUMNS = (
    "op",
    "shape",
    "candidate",
    "median_us",
    "p20_us",
    "p80_us",
    "floor_bytes",
    "gb_per_s",
    "floor_flops",
    "tflop_per_s",
    "runs",
    "machine",
    "torch",
)


@dataclass
class Candidate:
    """One way to compute a case."""

    name: str
    run: Callable[[], object]


@dataclass
class Case:
    """Inputs of one size and the candidates that compute the same from them."""

    op: str
    shape: str
    candidates: Sequence[Candidate]
    check: Callable[[], None]  # raises AssertionError if the candidates disagree
    floor_bytes: int  # the bytes that any implementation must move
    flops: float = 0.0  # the operations of any, if they may take longer
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def median(self, name: str) -> float:
        """Returns the seconds of the candidate's median run."""
        return statistics.median(self.seconds[name])


def _seconds_on_cpu(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds_of_call(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _seconds_on_gpu(run: Callable[[], object]) -> float:
    """Times a call without the host: the GPU sleeps until the host has queued all of it."""
    start = time.perf_counter()
    run()
    seconds = 2 * (time.perf_counter() - start) + 50e-6
    torch.cuda.synchronize()
    torch.cuda._sleep(int(seconds * CYCLES_A_SECOND))
    return _seconds_of_call(run)


def measure(
    cases: Sequence[Case],
    device: str,
    min_seconds: float = 1.0,
    min_rounds: int = 9,
    warm_up: int = 3,
    gpu_alone: bool = False,
) -> None:
    """Checks each case, then fills its `seconds`.

    Args:
        cases: the cases to measure.
        device: "cpu" or "cuda".
        min_seconds: least seconds of all runs of a case.
        min_rounds: least number of runs of each candidate.
        warm_up: number of runs before the first that counts.
        gpu_alone: whether the host's time to launch a call is left out, which models a program
            whose host is ahead of its GPU.

    Raises:
        AssertionError: the candidates of a case disagree.
    """
    seconds = _seconds_on_cpu
    if device == "cuda":
        seconds = _seconds_on_gpu if gpu_alone else _seconds_of_call
    for case in cases:
        case.check()
        for candidate in case.candidates:  # compiles, warms up
            for _ in range(warm_up):
                candidate.run()
        case.seconds = {c.name: [] for c in case.candidates}
        start, rounds = time.perf_counter(), 0
        while rounds < min_rounds or time.perf_counter() - start < min_seconds:
            for candidate in case.candidates:
                case.seconds[candidate.name].append(seconds(candidate.run))
            rounds += 1


def without_tensors(case: Case) -> Case:
    """Returns a measured case without its tensors."""
    names = [Candidate(c.name, lambda: None) for c in case.candidates]
    return replace(case, candidates=names, check=lambda: None)


def copy_bandwidth(device: str, size: int = 1 << 28) -> float:
    """Returns the bytes per second of a large copy, both read and written."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    case = Case("copy", "", [Candidate("copy", lambda: target.copy_(source))], lambda: None, 0)
    measure([case], device, min_seconds=0.5)
    return 2 * size / case.median("copy")


def nbytes(*tensors: torch.Tensor) -> int:
    """Returns the bytes of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)


def machine(device: str) -> str:
    """Returns a description of the machine."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    from fastseg._core import extension

    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    name = names[0] if names else platform.machine()
    return f"{name}, {extension.simd_level()}, {torch.get_num_threads()} threads"


def write_csv(path: Path, device: str, cases: Sequence[Case]) -> None:
    """Writes a row per case and candidate: medians in microseconds, floor, machine, versions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(CSV_COLUMNS)
        for case in cases:
            for name, seconds in case.seconds.items():
                ordered = sorted(seconds)
                median, p20, p80 = (ordered[int(q * (len(ordered) - 1))] for q in (0.5, 0.2, 0.8))
                rows.writerow(
                    [
                        case.op,
                        case.shape,
                        name,
                        *(f"{s * 1e6:.2f}" for s in (median, p20, p80)),
                        case.floor_bytes,
                        f"{case.floor_bytes / median / 1e9:.2f}",
                        f"{case.flops:.0f}",
                        f"{case.flops / median / 1e12:.3f}",
                        len(seconds),
                        machine(device),
                        torch.__version__,
                    ]
                )


def summary_row(title: str, cases: Sequence[Case], ours: str, bandwidth: float) -> str:
    """Returns a line: the sums of our medians and the fastest rival's, ratio, share of copy speed.

    The rival is the candidate that is fastest in the sum of all cases.
    """
    totals = {c.name: sum(case.median(c.name) for case in cases) for c in cases[0].candidates}
    mine = totals.pop(ours)
    rival = min(totals, key=totals.__getitem__)
    floor = sum(case.floor_bytes for case in cases) / bandwidth
    others = "  ".join(f"{name} {total * 1e3:.3f}" for name, total in totals.items())
    return (
        f"{title:<44} {mine * 1e3:9.3f} ms  {totals[rival] / mine:6.2f}x over {rival:<14}"
        f" floor {floor * 1e3:8.3f} ms ({floor / mine:4.0%} of copy speed)  [{others}]"
    )
