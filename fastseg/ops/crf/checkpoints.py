"""Binomial checkpointing: which states a reversal keeps, and which it computes again.

Griewank and Walther, "Algorithm 799: revolve", 2000. With s kept states and every step repeated at
most r times, ``binomial(s + r, s)`` steps can be reversed: 3 states and 2 repeats reverse 10.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb
from typing import TypeVar

State = TypeVar("State")


def reversed_states(
    start: State, steps: int, kept: int, advance: Callable[[State], State]
) -> Iterator[State]:
    """The states before each of the steps, the last one first.

    Args:
        start: the state before the first step.
        steps: the number of steps.
        kept: how many states may be held at once, `start` among them, the yielded one not.
        advance: the function that makes of a state the one after a step.
    """
    if steps <= 0:
        return
    if steps == 1:
        yield start
        return
    if kept == 1:
        for last in reversed(range(steps)):
            state = start
            for _ in range(last):
                state = advance(state)
            yield state
        return
    first = first_part(steps, kept)
    middle = start
    for _ in range(first):
        middle = advance(middle)
    yield from reversed_states(middle, steps - first, kept - 1, advance)
    del middle
    yield from reversed_states(start, first, kept, advance)


def first_part(steps: int, kept: int) -> int:
    """The number of steps after which to keep the next state, so that the fewest are repeated."""
    repeats = 1
    while comb(kept + repeats, kept) < steps:
        repeats += 1
    return min(comb(kept + repeats - 1, kept), steps - comb(kept + repeats - 2, kept - 1))
