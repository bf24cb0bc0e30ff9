"""What the CUDA kernels ask of a GPU's memory, counted while they run on the CPU.

    with Trace() as trace:
        traced.max_pool2d(x, ...)
    for launch in trace.launches: ...

Counts are the kernels' own: nothing of a GPU's caches, clocks or schedulers is in them.
"""

from __future__ import annotations

import ctypes
import functools
import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .build import CSRC, library
from .loader import load

SECTOR_BYTES = 32
KINDS = ("load", "store", "atomic")


@functools.cache
def traced():
    """The traced ops, as torch.ops.fastseg_cuda_traced."""
    load("traced")
    return torch.ops.fastseg_cuda_traced


@dataclass(frozen=True)
class Site:
    """An instruction that touches memory, and what the warps of a launch asked for there.

    Attributes:
        place: source lines, the innermost last, as "file:line".
        kind: "load", "store" or "atomic".
        shared: whether in shared memory.
        bytes: of a lane's widest access.
        requests: of warps.
        lanes: accesses of their threads.
        lane_bytes: that these wanted, those that several lanes of a request share counted once.
        sectors: 32-byte sectors of global memory that the requests touch.
        wavefronts: of shared memory that the requests take, with bank conflicts.
        least_wavefronts: without.
    """

    place: str
    kind: str
    shared: bool
    bytes: int
    requests: int
    lanes: int
    lane_bytes: int
    sectors: int
    wavefronts: int
    least_wavefronts: int

    @property
    def efficiency(self) -> float:
        """Bytes wanted of those moved between the first-level cache and a warp."""
        return self.lane_bytes / (SECTOR_BYTES * self.sectors) if self.sectors else 1.0


@dataclass(frozen=True)
class Race:
    """Two places that touch the same byte, unordered, and one writes.

    Attributes:
        places: the two, as ``Site.place``.
        shared: whether in shared memory.
        across_blocks: whether two blocks are in it.
        count: how often it was seen.
    """

    places: tuple[str, str]
    shared: bool
    across_blocks: bool
    count: int


@dataclass(frozen=True)
class Launch:
    """A kernel's launch.

    Attributes:
        kernel: its name with its template's arguments, without parameters.
        blocks: of the grid.
        threads: of a block.
        shared_bytes: of dynamic shared memory a block.
        barriers: arrivals of warps.
        read_a_block: sectors read, each once for each block: what a perfect first-level cache
            leaves for the second.
        read: sectors read, each once.
        written: sectors written, each once.
        fresh_read: sectors read that nothing before in the same trace has touched.
        fresh_written: sectors written that nothing before in it has touched.
        sites: see ``Site``.
        races: found, if they were looked for.
    """

    kernel: str
    blocks: int
    threads: int
    shared_bytes: int
    barriers: int
    read_a_block: int
    read: int
    written: int
    fresh_read: int
    fresh_written: int
    sites: tuple[Site, ...]
    races: tuple[Race, ...] = field(repr=False)

    @property
    def name(self) -> str:
        """The kernel's, without namespaces, template arguments and parameters."""
        return short_name(self.kernel)

    def total(self, what: str, kinds: tuple[str, ...] = KINDS) -> int:
        """The sum of an attribute over the sites of these kinds."""
        return sum(getattr(site, what) for site in self.sites if site.kind in kinds)


class Trace:
    """Counts what the traced ops do inside its ``with``.

    Args:
        finds_races: also looks for accesses that no barrier orders, which is most of the work.

    Attributes:
        launches: in their order.
        memsets: bytes of each of the runtime's memsets.
        memcpys: bytes of each of the runtime's copies.
        synchronizations: how often the host waited for the device.
    """

    def __init__(self, finds_races: bool = False):
        self.finds_races = finds_races
        self.launches: list[Launch] = []
        self.memsets: list[int] = []
        self.memcpys: list[int] = []
        self.synchronizations = 0

    def __enter__(self) -> Trace:
        self._library, _ = load("traced")
        self._library.cuda_on_cpu_trace_end.restype = ctypes.c_char_p
        self._library.cuda_on_cpu_trace_begin(ctypes.c_bool(self.finds_races))
        return self

    def __exit__(self, *error) -> None:
        events = json.loads(self._library.cuda_on_cpu_trace_end())
        self.memsets = [e["memset"] for e in events if "memset" in e]
        self.memcpys = [e["memcpy"] for e in events if "memcpy" in e]
        self.synchronizations = sum("synchronize" in e for e in events)
        self.launches = _launches([e for e in events if "kernel" in e])

    @property
    def races(self) -> list[Race]:
        """Of all launches, each pair of places once."""
        unique = {(r.places, r.shared, r.across_blocks): r for x in self.launches for r in x.races}
        return list(unique.values())


def without_parameters(function: str) -> str:
    """A demangled function's name with its template's arguments; compilers differ in the rest."""
    whole = function.replace("(anonymous namespace)::", "")
    depth = 0
    for i, letter in enumerate(whole):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return whole[:i].removeprefix("void ")
    return whole


def short_name(function: str) -> str:
    """A demangled function's name, without namespaces, template arguments and parameters."""
    return without_parameters(function).partition("<")[0].rpartition("::")[2]


def _launches(events: list[dict]) -> list[Launch]:
    places = {s[0] for e in events for s in e["sites"]}
    places |= {p for e in events for r in e["races"] for p in r[:2]}
    lines = _lines(frozenset(places))
    launches = []
    for e in events:
        x, y, z = e["grid"]
        sites = tuple(Site(lines[s[0]], KINDS[s[1]], bool(s[2]), *s[3:]) for s in e["sites"])
        races = tuple(
            Race((lines[a], lines[b]), bool(shared), bool(across), count)
            for a, b, shared, across, count in e["races"]
        )
        kernel = without_parameters(_functions()[e["kernel"]])
        shape = (x * y * z, e["threads"], e["shared_bytes"], e["barriers"])
        launches.append(Launch(kernel, *shape, *e["footprint"], sites, races))
    return launches


@functools.cache
def _functions() -> dict[int, str]:
    """Names of the library's functions by their offsets."""
    command = ["nm", "--demangle", "--defined-only", library("traced")]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    symbols = re.findall(r"^([0-9a-f]+) [tTwW] (.+)$", text, flags=re.MULTILINE)
    return {int(at, 16): name for at, name in symbols}


@functools.cache
def _lines(places: frozenset[int]) -> dict[int, str]:
    """Source lines of csrc behind return addresses, the innermost last."""
    if not places:
        return {}
    command = ["addr2line", "--inlines", "--addresses", "--exe", str(library("traced"))]
    asked = "\n".join(hex(p - 1) for p in sorted(places))  # in the call, not behind it
    text = subprocess.run(command, input=asked, capture_output=True, text=True, check=True).stdout
    lines = {}
    for part in text.split("0x")[1:]:
        at, *frames = part.split("\n")
        chain = [f.partition(" (")[0].rpartition(":")[::2] for f in frames if f]
        lines[int(at, 16) + 1] = " > ".join(reversed([short_line(*frame) for frame in chain]))
    return lines


def short_line(path: str, line: str) -> str:
    """A source line as "file:line", the file from csrc on where it is one of ours."""
    resolved = Path(path).resolve()
    name = resolved.relative_to(CSRC) if resolved.is_relative_to(CSRC) else resolved.name
    return f"{name}:{line}"
