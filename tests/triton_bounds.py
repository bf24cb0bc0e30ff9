"""Runs a script with Triton's interpreter and holds each access to the tensors of its launch.

The interpreter follows any pointer: what lies outside is garbage that a mask may hide, or a crash
one day. Here the first such access ends the script and says what reached where.

Usage: python -m tests.triton_bounds SCRIPT, with TRITON_INTERPRET set.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorDescriptor

from tests import quick_interpreter


def tensors_of(arguments: Iterable[object]) -> Iterator[torch.Tensor]:
    """The tensors among a launch's arguments, those of tuples and descriptors too."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, TensorDescriptor):
            yield argument.base
        elif isinstance(argument, tuple):
            yield from tensors_of(argument)


def bytes_of(t: torch.Tensor) -> tuple[int, int]:
    """The addresses of a tensor's first byte and of the one behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return t.data_ptr(), t.data_ptr() + (last + 1) * t.element_size() * (t.numel() > 0)


class Bounds:
    """What a launch may reach.

    Attributes:
        first: (ranges,): the address of each range's first byte, ascending.
        end: (ranges,): the address behind its last.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]):
        ranges = []
        for first, end in sorted(map(bytes_of, tensors)):
            if ranges and first < ranges[-1][1]:
                ranges[-1][1] = max(end, ranges[-1][1])
            elif end > first:
                ranges.append([first, end])
        self.first, self.end = np.array(ranges, np.uint64).reshape(-1, 2).T

    def check(self, what: str, pointers: np.ndarray, size: int) -> None:
        """Refuses accesses of `size` bytes of which one lies in no tensor."""
        if not pointers.size:
            return
        pointers = pointers.astype(np.uint64)
        place = np.searchsorted(self.first, pointers, side="right") - 1
        outside = (place < 0) | (pointers + np.uint64(size) > self.end[place])
        if outside.any():
            stray = pointers[outside]
            distance = stray[0].astype(np.int64) - self.end.astype(np.int64)
            nearest = distance[np.abs(distance).argmin()]
            raise IndexError(
                f"{what} outside of all tensors of the launch: {stray.size} of {pointers.size} "
                f"elements, the first {nearest} bytes from a tensor's end"
            )


def install() -> None:
    """Checks all launches from now on."""
    bounds = Bounds(())
    to_host = GridExecutor._init_args_hst
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def arguments(self, positional, named):
        nonlocal bounds
        host = to_host(self, positional, named)
        bounds = Bounds(tensors_of((*host[0], *host[1].values())))
        return host

    # Descriptors and unmasked accesses come by these as well.
    def masked_load(self, ptrs, mask, *others, **options):
        size = ptrs.get_element_ty().primitive_bitwidth // 8
        bounds.check("a load", ptrs.data[mask.data], size)
        return load(self, ptrs, mask, *others, **options)

    def masked_store(self, ptrs, value, mask, *others, **options):
        bounds.check("a store", ptrs.data[mask.data], value.data.itemsize)
        return store(self, ptrs, value, mask, *others, **options)

    GridExecutor._init_args_hst = arguments
    InterpreterBuilder.create_masked_load = masked_load
    InterpreterBuilder.create_masked_store = masked_store


if __name__ == "__main__":
    quick_interpreter.install()
    install()
    runpy.run_path(sys.argv[1], run_name="__main__")
