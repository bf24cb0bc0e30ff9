"""Checks that run once for all calls that look alike."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from torch import Tensor
from torch._C import _get_tracing_state, _set_tracing_state

MOST_CALLS = 4096
"""Number of call signatures whose results are cached; the cache is emptied beyond that."""

_T = TypeVar("T")


def remember(check: Callable[..., _T]) -> Callable[..., _T]:
    """Returns `check` with a cache, keyed by the shapes, dtypes and devices of its tensors.

    In Python the checks of one call take as long as a small convolution.

    Args:
        check: a function that reads nothing else of its tensors, which may stand in lists. Its
            other arguments must be hashable.
    """
    known: dict[tuple, _T] = {}

    @functools.wraps(check)
    def remembering(*arguments):
        state = _get_tracing_state()
        if state is not None:  # sizes are tensors while it is set, which decide nothing
            _set_tracing_state(None)
            try:
                return remembering(*arguments)
            finally:
                _set_tracing_state(state)
        try:
            key = _key(arguments)
            found = known.get(key)
        except (TypeError, RuntimeError):
            # A key with symbolic sizes, or with a wrong argument, has no hash.
            return check(*arguments)
        if found is None:
            found = check(*arguments)
            if len(known) >= MOST_CALLS:
                known.clear()
            known[key] = found
        return found

    return remembering


def _key(arguments: Sequence) -> tuple:
    key = []
    for a in arguments:  # a generator would take longer
        if isinstance(a, Tensor):
            key += (a.shape, a.dtype, a.device)
        elif isinstance(a, (list, tuple)):
            key += (type(a), _key(a))  # a plain tuple equals a named one
        else:
            key.append(a)
    return tuple(key)
