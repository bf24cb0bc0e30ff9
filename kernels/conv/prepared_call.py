"""A prepared call: the host's whole part of an op whose kernels and parameters are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton import knobs

from fastseg._core.prepared_calls import launcher
from fastseg.kernels.conv.plan_cache import cache

# torch's own names of these check, each time, what is known here.
_current_device = getattr(torch._C, "_cuda_getDevice", None)
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_is_capturing = torch._C._cuda_isCurrentStreamCapturing
_empty = torch._C._dynamo.guards._empty_strided_cuda


class Memory(NamedTuple):
    """An empty tensor: what ``torch.empty_strided`` takes."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class Step(NamedTuple):
    """A function of torch, and the numbers of the values that it takes."""

    function: Callable[..., Tensor]
    values: tuple[int, ...]


class Kernel(NamedTuple):
    """A launch.

    Attributes:
        compiled: Triton's compiled kernel.
        grid: numbers of programs along three axes.
        parameters: the kernel's parameters, 0 for each address that is not known before a call.
        addresses: of each of these its parameter, the number of the value in whose memory it lies,
            the number of bytes to it, and whether it is a multiple of 16.
    """

    compiled: Any
    grid: tuple[int, ...]
    parameters: tuple[int, ...]
    addresses: tuple[tuple[int, int, int, bool], ...]


def is_observed() -> bool:
    """Whether somebody wants to hear of Triton's launches, which a profiler does."""
    return _is_set(knobs.runtime.launch_enter_hook) or _is_set(knobs.runtime.launch_exit_hook)


def _is_set(hook: Any) -> bool:
    return hook is not None and bool(getattr(hook, "calls", True))


def _as_tuple(kernel: Kernel) -> tuple:
    """A launch as the compiled module takes it."""
    warps, _, shared = kernel.compiled.packed_metadata
    function = kernel.compiled.function
    return function, kernel.grid, 32 * warps, shared, kernel.parameters, kernel.addresses


class PreparedCall:
    """A call whose values are the arguments, then what is derived from them, made, and after.

    It changes nothing in itself but the set of streams, and threads share it.

    Args:
        derived: what torch computes of the arguments first.
        made: the outputs.
        scratch: number of bytes that the kernels need meanwhile.
        kernels: the launches, in their order.
        after: what torch computes of the outputs.
        result: the number of the value that is returned.
        plans: plans of the cache whose memory the kernels read.
        values: number of the values that kernels may read.

    Raises:
        RuntimeError: the driver cannot be used.
    """

    def __init__(
        self,
        derived: tuple[Step, ...],
        made: tuple[Memory, ...],
        scratch: int,
        kernels: Sequence[Kernel],
        after: tuple[Step, ...],
        result: int,
        plans: tuple,
        values: int,
    ):
        self.derived = derived
        self.made = made
        self.scratch = Memory((scratch,), (1,), torch.uint8) if scratch else None
        self.after = after
        self.result = result
        self.plans = plans
        self.kernels = kernels  # Triton unloads what nobody holds
        self.device = _current_device()
        self.streams: set[int] = set()
        self.launch = launcher.Kernels(self.device, values, tuple(map(_as_tuple, kernels))).launch

    def __call__(self, tensors: Sequence[Tensor | None]) -> Tensor | None:
        """The op's result for tensors of this kind.

        None says that nothing was done and the ordinary way must be taken: another device is the
        current one, somebody observes Triton, or memory begins where the kernels do not expect it.
        """
        if _current_device() != self.device or is_observed():
            return None
        stream = _current_stream(self.device)
        if stream not in self.streams or _is_capturing():
            self._protect(stream)
        values = [*tensors]
        for function, numbers in self.derived:
            values.append(function(*[values[i] for i in numbers]))
        for memory in self.made:
            values.append(_empty(*memory))
        values.append(_empty(*self.scratch) if self.scratch else None)
        if not self.launch(stream, values):
            return None
        for function, numbers in self.after:
            values.append(function(*[values[i] for i in numbers]))
        return values[self.result]

    def _protect(self, stream: int) -> None:
        """Makes the plans outlive the work of the current stream that reads them."""
        capturing = _is_capturing()
        for plan in self.plans:
            cache.protect(plan, capturing)
        if not capturing:  # torch asks the stream how far it is when it frees the plan
            self.streams.add(stream)
