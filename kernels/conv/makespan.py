"""The model of a launch's time: programs of known lengths on a known number of processors."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

MOST_ROUNDS = 16
"""Number of programs for each processor up to which they are followed one by one."""


def makespan(lengths: Sequence[float], processors: int) -> float:
    """The time at which the last program ends.

    Programs start in their order, each as soon as a processor is free. Of more than MOST_ROUNDS
    for each processor, whose ends are even, the time is that of their sum and half of the longest.

    Args:
        lengths: how long each program runs, in any unit, the longest first.
        processors: number of programs that run at a time.
    """
    if len(lengths) > MOST_ROUNDS * processors:
        return sum(lengths) / processors + max(lengths) / 2
    busy = [0.0] * processors
    for length in lengths:
        heapq.heapreplace(busy, busy[0] + length)
    return max(busy)
