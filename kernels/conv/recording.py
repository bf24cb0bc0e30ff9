"""Recording of a call: its kernels, their parameters and its memory, for later calls of its kind.

An op's function launches its kernels through a `Recording`, and creates through it every tensor
that they read or write. Each address that a kernel gets is then one of a known tensor: an argument,
one that is derived from arguments (as a copy in channels_last), an output, memory that the call
alone needs, or a plan's. `Recording.keep` makes a `PreparedCall` of it.

What a kernel is launched with comes from Triton's own compiled kernel: function, block, shared
memory, the order and the types of parameters. Whatever is not known of a kernel, such as a
cooperative launch, a parameter of a type that no kernel here has, or another number of parameters
than the compiled kernel reads, leaves the call to Triton. So does the interpreter.
"""

from __future__ import annotations

import collections
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastseg._core import prepared_calls
from fastseg.kernels.conv.prepared_call import Kernel, Memory, PreparedCall, Step

SCRATCH_ALIGNMENT = 512
"""Bytes to whose multiples parts of a call's own memory are aligned, as torch's allocations are."""

INTEGERS = {"i32": ".u32", "i64": ".u64"}
"""Triton's types of the integers that kernels here take, and those of PTX."""

MOST_SHARED = 227 << 10
"""Bytes of shared memory beyond which Triton asks the driver for more than a launch."""


class Unknown(Exception):
    """Something about a call that its preparation does not know."""


class Place(NamedTuple):
    """Where a tensor's memory is found at a later call.

    Attributes:
        kind: "argument", "derived", "made" (an output), "scratch", "after" or "plan".
        number: which of that kind; in scratch the first byte; of a plan the address.
        offset: number of bytes from the beginning of that tensor.
        is_view: whether it is another tensor in the same memory, of any sizes and strides.
    """

    kind: str
    number: int
    offset: int = 0
    is_view: bool = False


class Recording:
    """What a call does; every method also does it.

    Args:
        tensors: all tensors of the call, in the order in which prepared calls will get them.
    """

    def __init__(self, tensors: Sequence[Tensor | None]):
        self.tensors = tuple(tensors)
        self.places: dict[int, Place] = {}
        self.alive: list[Any] = []  # an id is a tensor's as long as the tensor lives
        given = [id(t) for t in tensors if t is not None]
        # Of a tensor that is two arguments nobody knows which of them a kernel reads.
        twice = len(set(given)) < len(given)
        on_gpu = given and tensors[0].device.type == prepared_calls.DEVICE
        self.unknown = prepared_calls.launcher is None or not on_gpu or twice
        self.derived: list[tuple[Callable, list[Place]]] = []
        self.made: list[Memory] = []
        self.scratch = 0
        self.after: list[tuple[Callable, list[Place]]] = []
        self.plans: list[Any] = []
        self.kernels: list[tuple] = []
        for i, t in enumerate(tensors):
            if t is not None:
                self._put(t, Place("argument", i))

    def _put(self, t: Tensor, place: Place) -> Tensor:
        self.places.setdefault(id(t), place)
        self.alive.append(t)
        return t

    def _place(self, t: Tensor) -> Place:
        place = self.places.get(id(t))
        if place is None:
            raise Unknown("a tensor that was not made through the recording")
        return place

    def derive(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """``function(*tensors)``, which must depend on nothing else."""
        result = function(*tensors)
        if self.unknown or any(result is t for t in tensors):
            return result
        try:
            places = [self._place(t) for t in tensors]
            alias = self._alias(result, tensors)
            if alias is not None:
                return self._put(result, alias)
            if any(p.is_view or p.kind in ("scratch", "plan") for p in places):
                raise Unknown("a tensor derived from one that later calls do not have")
        except Unknown:
            self.unknown = True
            return result
        if all(p.kind in ("argument", "derived") for p in places):
            self.derived.append((function, places))
            return self._put(result, Place("derived", len(self.derived) - 1))
        self.after.append((function, places))
        return self._put(result, Place("after", len(self.after) - 1))

    def _alias(self, result: Tensor, tensors: Sequence[Tensor]) -> Place | None:
        """The place of a view of one of the tensors."""
        for t in tensors:
            offset = result.data_ptr() - t.data_ptr()
            same = result.untyped_storage().data_ptr() == t.untyped_storage().data_ptr()
            if same and offset >= 0:
                kind, number, first, _ = self._place(t)
                return Place(kind, number, first + offset, is_view=True)
        return None

    def output(self, t: Tensor) -> Tensor:
        """A tensor that the call returns, as it was created: empty."""
        self.made.append(Memory(tuple(t.shape), t.stride(), t.dtype))
        return self._put(t, Place("made", len(self.made) - 1))

    def temporary(self, t: Tensor) -> Tensor:
        """A dense tensor that only the call's own kernels use, as it was created: empty."""
        return self._put(t, self._in_scratch(t.untyped_storage().nbytes()))

    def _in_scratch(self, size: int) -> Place:
        place = Place("scratch", self.scratch)
        self.scratch += math.ceil(size / SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT
        return place

    def plan(self, plan: Any) -> Any:
        """A plan of the cache of plans, whose tensors kernels read."""
        self.plans.append(plan)
        for t in plan:
            if isinstance(t, Tensor):
                self._put(t, Place("plan", t.data_ptr()))
        return plan

    def launch(self, kernel, grid: tuple[int, ...], *arguments, **options) -> None:
        """Launches a Triton kernel: ``kernel[grid](*arguments, **options)``."""
        compiled = kernel[grid](*arguments, **options)
        if self.unknown:
            return
        try:
            check(compiled)
            if self.after:
                raise Unknown("a kernel after other work on an output")
            values = dict(zip(kernel.arg_names, arguments, strict=False)) | options
            grid = (*grid, 1, 1)[:3]
            self.kernels.append((compiled, grid, *self._parameters(compiled, grid, values)))
        except Unknown:
            self.unknown = True

    def _parameters(self, compiled, grid: tuple[int, ...], values: dict) -> tuple[list, list]:
        """A kernel's parameters, and of those that are addresses (parameter, place, aligned)."""
        parameters, addresses, types = [], [], []
        signature = compiled.src.signature
        for kind, value in flat(tuple(signature.values()), tuple(values[n] for n in signature)):
            if kind.startswith("*"):
                addresses.append((len(parameters), self._place(value), value.data_ptr() % 16 == 0))
                parameters.append(0)
                types.append(".u64")
            elif kind in INTEGERS and isinstance(value, int):
                parameters.append(value)
                types.append(INTEGERS[kind])
            else:
                raise Unknown(f"a parameter of type {kind}")
        size = compiled.metadata.global_scratch_size * math.prod(grid)
        if size:
            addresses.append((len(parameters), self._in_scratch(size), True))
        # What Triton adds to every kernel: memory for descriptors, and for profiles.
        parameters += [0, 0]
        types += [".u64", ".u64"]
        if types != parameters_in(compiled.asm["ptx"]):
            raise Unknown("a kernel with other parameters")
        return parameters, addresses

    def keep(self, op: str, options: tuple, result: Tensor) -> Tensor:
        """Prepares calls of this kind, if all of this one is known. Returns the result.

        Args:
            op: the op's name.
            options: its arguments that are no tensors.
            result: what the call returns.
        """
        if not self.unknown and not torch.cuda.is_current_stream_capturing():
            try:
                call = self._prepared(result)
            except (Unknown, RuntimeError, ValueError):
                return result
            prepared_calls.keep(op, self.tensors, options, call)
        return result

    def _prepared(self, result: Tensor) -> PreparedCall:
        self._check_uses()
        derived = len(self.tensors)
        made = derived + len(self.derived)
        scratch = made + len(self.made)
        first = {"argument": 0, "derived": derived, "made": made, "after": scratch + 1}

        def number(place: Place) -> int:
            return scratch if place.kind == "scratch" else first[place.kind] + place.number

        def steps(recorded) -> tuple[Step, ...]:
            return tuple(Step(f, tuple(map(number, places))) for f, places in recorded)

        kernels = []
        for compiled, grid, parameters, addresses in self.kernels:
            at = []
            for parameter, place, aligned in addresses:
                if place.kind == "plan":
                    parameters[parameter] = place.number + place.offset
                    continue
                inside = place.number if place.kind == "scratch" else 0
                at.append((parameter, number(place), inside + place.offset, aligned))
            kernels.append(Kernel(compiled, grid, tuple(parameters), tuple(at)))
        place = self._place(result)
        if place.kind not in ("derived", "made", "after") or place.is_view:
            raise Unknown("a result that is none of the call's outputs")
        return PreparedCall(
            steps(self.derived),
            tuple(self.made),
            self.scratch,
            kernels,
            steps(self.after),
            number(place),
            tuple(self.plans),
            scratch + 1,
        )

    def _check_uses(self) -> None:
        """Raises Unknown if kernels outside of the recording must have used its memory.

        What is temporary is written by one kernel and read by another, an output is written by one.
        """
        uses = collections.Counter(
            (place.kind, place.number)
            for *_, addresses in self.kernels
            for place in {place for _, place, _ in addresses}
        )
        for place in self.places.values():
            least = {"scratch": 2, "made": 1}.get(place.kind, 0)
            if uses[place.kind, place.number] < least:
                raise Unknown("a kernel that was not recorded")


def flat(kinds: Any, values: Any) -> Iterator[tuple[str, Any]]:
    """The parameters that a kernel reads, with their types: no constants, groups one by one."""
    for kind, value in zip(kinds, values, strict=True):
        if isinstance(kind, tuple):
            yield from flat(kind, value)
        elif kind != "constexpr":
            yield kind, value


def check(compiled: Any) -> None:
    """Raises Unknown unless a launch of the kernel is a plain one of Triton's launcher for CUDA."""
    launcher = getattr(compiled, "run", None)
    of_cuda = type(launcher).__module__ == "triton.backends.nvidia.driver"
    if not of_cuda or type(launcher).__name__ != "CudaLauncher":
        raise Unknown("a kernel that Triton's launcher for CUDA does not launch")
    metadata = compiled.metadata
    if len(compiled.packed_metadata) != 3:  # warps, blocks of a cluster, shared memory
        raise Unknown("a launcher of another version")
    plain = {
        "num_ctas": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "profile_scratch_size": 0,
        "warp_size": 32,
    }
    for name, expected in plain.items():
        if getattr(metadata, name, expected) != expected:
            raise Unknown(f"a kernel with {name}")
    if getattr(launcher, "gsan_enabled", False) or metadata.shared > MOST_SHARED:
        raise Unknown("a launch with attributes")
    if metadata.global_scratch_size and metadata.global_scratch_align > SCRATCH_ALIGNMENT:
        raise Unknown("a larger alignment")
    if not isinstance(compiled.function, int):
        raise Unknown("a kernel without a function of the driver")


@functools.lru_cache(maxsize=256)
def parameters_in(ptx: str) -> list[str]:
    """The types of a kernel's parameters, ".u32" or ".u64"."""
    entries = re.findall(r"\.entry\s+\w+\s*\(([^)]*)\)", ptx)
    if len(entries) != 1:
        raise Unknown("a program of several kernels")
    found = re.findall(r"\.param\s+\.([a-z])(\d+)", entries[0])
    return [f".u{bits}" if kind in "ubs" else f".{kind}{bits}" for kind, bits in found]
