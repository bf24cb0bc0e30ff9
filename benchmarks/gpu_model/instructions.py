"""How many instructions the warps of a launch issue, by the machine code and the traced accesses.

The code knows how long each run of instructions between two jumps is; the trace knows how often
each place that touches memory was passed. A run is passed as often as its accesses were, each of
which stands for an equal part of those from the same source line; a run without accesses as often
as the nearest ones with some, the rarer of the two.
"""

from __future__ import annotations

import functools
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_on_cpu.build import CSRC
from tests.cuda_on_cpu.objects import CUOBJDUMP, NVCC, cubin, tool
from tests.cuda_on_cpu.tracing import Launch, short_line, without_parameters

ARCH = "90"
ACCESSES = {"LDG": False, "STG": False, "ATOMG": False, "RED": False, "LD": False, "ST": False}
ACCESSES |= {"LDS": True, "STS": True, "ATOMS": True, "LDGSTS": False}
JUMPS = ("BRA", "BRX", "EXIT", "RET", "CALL", "BREAK", "WARPSYNC")

Place = tuple[str, bool]  # lines as in Site.place, and whether in shared memory


@dataclass(frozen=True)
class Kernel:
    """A kernel's machine code.

    Attributes:
        registers: of a thread.
        runs: for each run of instructions its length and its accesses to memory.
    """

    registers: int
    runs: tuple[tuple[int, tuple[Place, ...]], ...]

    def issued(self, launch: Launch) -> float:
        """Instructions of all warps of a launch."""
        requests: dict[Place, float] = defaultdict(float)
        for site in launch.sites:
            requests[" > ".join(_ours(site.place.split(" > "))), site.shared] += site.requests
        known = {place: _traced(place, requests) for _, places in self.runs for place in places}
        copies = Counter(known[p] for _, places in self.runs for p in places if known[p])
        # A place that has no access of its own shares those of the same line of the kernel.
        for place in requests.keys() - copies.keys():
            siblings = [p for p in copies if _own(p) == _own(place)]
            total = sum(copies[p] for p in siblings)
            for sibling in siblings:
                requests[sibling] += requests[place] * copies[sibling] / total
        start = float(launch.blocks * -(-launch.threads // 32))
        passes: list[float | None] = [start]
        for _, places in self.runs:
            each = [requests[known[p]] / copies[known[p]] if known[p] else None for p in places]
            traced = [count for count in each if count is not None]
            passes.append(sum(traced) / max(len(traced), 1) if places else None)
        return sum(
            length * (passes[i] if passes[i] is not None else _between(passes, i))
            for i, (length, _) in enumerate(self.runs, 1)
        )


def _between(passes: list[float | None], i: int) -> float:
    """The smaller of the nearest known counts on both sides."""
    before = next(p for p in reversed(passes[:i]) if p is not None)
    after = next((p for p in passes[i:] if p is not None), before)
    return min(before, after)


def _own(place: Place) -> Place:
    """The kernel's own line."""
    return place[0].split(" > ")[0], place[1]


def _traced(place: Place, requests: dict[Place, float]) -> Place | None:
    """The traced place of an access: g++ calls some functions that nvcc inlines.

    Its lines are then the last of the longer chain. An access that was never traced has none.
    """
    lines = place[0].split(" > ")
    for i in range(len(lines)):
        end = " > ".join(lines[i:]), place[1]
        if end in requests:
            return end
    # nvcc may give a load in an inlined function the line that uses what was loaded.
    for i in range(len(lines) - 1):
        call = " > ".join(lines[i:-1]) + " > "
        inside = [p for p in requests if p[0].startswith(call) and p[1] == place[1]]
        if len(inside) == 1:
            return inside[0]
    return None


@functools.cache
def kernels(source: Path) -> dict[str, Kernel]:
    """The kernels of a .cu file by their names (``Launch.kernel``)."""
    code = cubin(source, ARCH)
    usage = _text(CUOBJDUMP, "--dump-resource-usage", code)
    registers = dict(re.findall(r"Function (\w+):\s+REG:(\d+)", usage))
    listing = _text(tool("nvdisasm"), "-c", "-gi", code)
    parts = re.split(r"^\.text\.(\w+):$", listing, flags=re.MULTILINE)[1:]
    bodies = dict(zip(parts[::2], parts[1::2], strict=True))
    names = _text("c++filt", text="\n".join(bodies)).split("\n")
    return {
        without_parameters(name): Kernel(int(registers[mangled]), tuple(_runs(body)))
        for name, (mangled, body) in zip(names, bodies.items(), strict=False)
    }


def kernel_of(launch: Launch) -> Kernel | None:
    """The launched kernel's machine code, if nvcc and nvdisasm are here."""
    if not (NVCC and CUOBJDUMP and tool("nvdisasm")):
        return None
    places = {site.place.split(":")[0] for site in launch.sites}
    sources = [CSRC / place for place in sorted(places) if place.endswith(".cu")]
    if not sources:  # a kernel that stands in a header
        folders = {(CSRC / place).parent for place in places if place.startswith("cuda/")}
        sources = [source for folder in sorted(folders) for source in sorted(folder.glob("*.cu"))]
    for source in sources:
        if found := kernels(source).get(launch.kernel):
            return found
    return None


def _text(*command, text: str | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)), input=text, capture_output=True, text=True, check=True
    )
    return done.stdout


def _runs(body: str) -> Iterator[tuple[int, tuple[Place, ...]]]:
    """Lengths and accesses of the runs of a function's instructions."""
    chain, whole, length, places = [], True, 0, []
    for row in body.split("\n"):
        if found := re.match(r'\s*//## File "([^"]+)", line (\d+)', row):
            if whole:
                chain = []
            chain.append(short_line(found[1], found[2]))
            whole = "inlined at" not in row
        elif row.startswith(".L_"):
            if length:
                yield length, tuple(places)
            length, places = 0, []
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+ )?([A-Z0-9_.]+)", row):
            name = found[1].split(".")[0]
            length += 1
            if name in ACCESSES:
                places.append((" > ".join(_ours(chain[::-1])), ACCESSES[name]))
            if name in JUMPS:
                yield length, tuple(places)
                length, places = 0, []
    if length:
        yield length, tuple(places)


def _ours(lines: list[str]) -> list[str]:
    """Lines of csrc alone: behind an intrinsic each compiler has headers of its own."""
    return [line for line in lines if line.startswith(("cuda/", "common/"))]
