"""The cache of plans: tables that depend on sizes alone, built on the host, kept on the device.

A plan is a NamedTuple whose first field, `buffer`, is a one-dimensional int32 tensor that holds all
of it; its other tensors are views of that buffer. It outlives every CUDA graph that was captured
with it.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

MOST_PLANS = 512
"""Number of plans that are kept, most of them of some 10 KB."""

MOST_BYTES = 1 << 27
"""Bytes of the plans that are kept: those of large maps have some for each pixel and branch. The
last plan is kept in any case."""


def pack(arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    """A buffer on the host, and the int32 arrays in it, each from a multiple of 16 bytes on."""
    places = np.cumsum([0] + [-(-array.size // 4) * 4 for array in arrays]).tolist()
    buffer = torch.zeros(places[-1], dtype=torch.int32, device="cpu")  # whatever the default is
    views = []
    for array, place in zip(arrays, places[:-1], strict=True):
        view = buffer[place : place + array.size].view(array.shape)
        view.copy_(torch.from_numpy(array))
        views.append(view)
    return buffer, *views


def moved(plan, buffer: Tensor):
    """The plan with its tensors in `buffer`, a copy of its own."""
    parts = (
        buffer.as_strided(part.shape, part.stride(), part.storage_offset())
        if isinstance(part, Tensor)
        else part
        for part in plan[1:]
    )
    return type(plan)(buffer, *parts)


def on_device(buffer: Tensor, device: torch.device) -> Tensor:
    """A copy of a buffer on a device that outlives the call, ready for all streams.

    A thread of its own makes it. What the calling thread allocates may belong to another: under
    torch.compile's CUDA graphs, whose pool must hold nothing that stays, or under use_mem_pool.
    """
    with ThreadPoolExecutor(1) as other:
        return other.submit(buffer.to, device).result()


class PlanCache:
    """The plans of a process that were used last; threads share it."""

    def __init__(self, most: int = MOST_PLANS, most_bytes: int = MOST_BYTES):
        self.most = most
        self.most_bytes = most_bytes
        self.lock = threading.Lock()
        self.plans: OrderedDict = OrderedDict()
        # What CUDA graphs read without owning it, which nobody tells when a graph is gone: one
        # copy on the host of each plan that was first needed in a capture, and plans that were
        # there before. Graphs share both, so this grows with the plans, not with the graphs.
        self.pinned: dict = {}
        self.captured: dict = {}

    def renew_lock(self) -> None:
        """Makes a lock that nobody holds."""
        self.lock = threading.Lock()

    def get(self, device: torch.device, build: Callable, *arguments):
        """``build(*arguments)``, on the device and ready for the current stream.

        Args:
            device: the device of the tensors that the plan is launched with.
            build: a function that makes a plan on the host.
            arguments: what `build` takes, all of it hashable.
        """
        key = (device, build, arguments)
        on_gpu = device.type == "cuda"
        capturing = on_gpu and torch.cuda.is_current_stream_capturing()
        with self.lock:
            plan = self.plans.get(key)
            if plan is None:
                plan = build(*arguments)
                if capturing:
                    # The copy becomes a part of the graph, which reads the host's memory whenever
                    # it runs, and owns the device's: this plan is of no use outside of it.
                    if key not in self.pinned:
                        self.pinned[key] = plan.buffer.pin_memory()
                    return moved(plan, self.pinned[key].to(device, non_blocking=True))
                plan = moved(plan, on_device(plan.buffer, device))
                self.plans[key] = plan
                self._drop_the_oldest()
            self.plans.move_to_end(key)
        if on_gpu:
            self.protect(plan, capturing)
        return plan

    def _drop_the_oldest(self) -> None:
        held = sum(plan.buffer.nbytes for plan in self.plans.values())
        while len(self.plans) > 1 and (len(self.plans) > self.most or held > self.most_bytes):
            _, plan = self.plans.popitem(last=False)
            held -= plan.buffer.nbytes

    def protect(self, plan, capturing: bool) -> None:
        """Makes a plan outlive what the current stream of its device does with it.

        Args:
            plan: a result of `get`.
            capturing: whether that stream is being captured.
        """
        if capturing:
            # A plan that was dropped and built again since is another one.
            self.captured[id(plan)] = plan
        else:
            # A plan that is dropped may still be read by a stream that it was not made on.
            plan.buffer.record_stream(torch.cuda.current_stream(plan.buffer.device))


cache = PlanCache()
# Another thread may hold the lock while the process forks, and is not there in the child.
os.register_at_fork(after_in_child=cache.renew_lock)
