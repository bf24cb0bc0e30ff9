"""Times of several ways to compute the same, as interleaved medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

MIN_ROUNDS = 5
MIN_SECONDS = 1.0
"""Least number of timed runs of each, and least seconds of all together."""


@dataclass(frozen=True)
class Row:
    """One way and its time.

    Attributes:
        name: what it is.
        seconds: the median time of a run, or None if it does not run.
        reason: why it does not run.
    """

    name: str
    seconds: float | None = None
    reason: str = ""


def interleaved_medians(
    runs: Mapping[str, Callable[[], object]], device: torch.device
) -> dict[str, float]:
    """Returns the median seconds of each run.

    They take turns, so that a slow moment of the machine meets all of them. Before each run that
    counts is one that does not: it meets the caches, and the threads that still spin, of the run
    before.

    Args:
        runs: what is timed, by name.
        device: where it computes; a GPU is waited for.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begin, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or time.perf_counter() - begin < MIN_SECONDS:
        for name, run in runs.items():
            run()
            wait()
            start = time.perf_counter()
            run()
            wait()
            seconds[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(times) for name, times in seconds.items()}


def speedups(rows: Sequence[Row], base: Sequence[str]) -> dict[str, float]:
    """Returns how many times as fast each row is as the fastest of those that ``base`` names."""
    timed = {row.name: row.seconds for row in rows if row.seconds is not None}
    fastest = min(timed[name] for name in base if name in timed)
    return {name: fastest / seconds for name, seconds in timed.items()}


def table(rows: Sequence[Row], base: Sequence[str], title: str) -> str:
    """Returns lines for a terminal: milliseconds and speed beside the fastest of ``base``.

    Args:
        rows: what was timed, and what does not run.
        base: names of rows that others are compared with, at least one of them timed.
        title: what ``base`` is, for the head of the column.
    """
    ratios = speedups(rows, base)
    width = max(len(row.name) for row in rows)
    lines = [f"  {'':<{width}} {'time':>11}   speed beside {title}"]
    for row in rows:
        cells = f"{'-':>11}   {row.reason}"
        if row.seconds is not None:
            cells = f"{row.seconds * 1e3:>8.2f} ms   {ratios[row.name]:.2f}x"
        lines.append(f"  {row.name:<{width}} {cells}")
    return "\n".join(lines)
