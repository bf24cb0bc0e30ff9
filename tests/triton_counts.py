"""What Triton kernels load, store and multiply, counted by Triton's interpreter.

For programs that set TRITON_INTERPRET before they import Triton.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from triton.runtime.interpreter import InterpreterBuilder


@dataclass
class Counts:
    """Sums over all programs of all launches.

    Attributes:
        load_bytes: that unmasked lanes load, however often.
        store_bytes: that they store.
        dot_flops: of matrix products, two for each multiply-add, masked elements included.
    """

    load_bytes: int = 0
    store_bytes: int = 0
    dot_flops: int = 0


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Counts while kernels are interpreted."""
    counts = Counts()
    kept = {name: getattr(InterpreterBuilder, name) for name in _COUNTED}

    # Descriptors and unmasked accesses come by these as well.
    def masked_load(self, ptrs, mask, *others, **options):
        loaded = kept["create_masked_load"](self, ptrs, mask, *others, **options)
        counts.load_bytes += int(np.count_nonzero(mask.data)) * loaded.data.itemsize
        return loaded

    def masked_store(self, ptrs, value, mask, *others, **options):
        counts.store_bytes += int(np.count_nonzero(mask.data)) * value.data.itemsize
        return kept["create_masked_store"](self, ptrs, value, mask, *others, **options)

    def dot(self, a, b, *others, **options):
        counts.dot_flops += 2 * a.data.size * b.data.shape[-1]
        return kept["create_dot"](self, a, b, *others, **options)

    replaced = dict(zip(_COUNTED, (masked_load, masked_store, dot), strict=True))
    try:
        for name, function in replaced.items():
            setattr(InterpreterBuilder, name, function)
        yield counts
    finally:
        for name, function in kept.items():
            setattr(InterpreterBuilder, name, function)


_COUNTED = ("create_masked_load", "create_masked_store", "create_dot")
