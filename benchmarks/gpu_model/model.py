"""The time of a launch, as the longest of what it must do, and of a call, as their sum."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from benchmarks.gpu_model.devices import Device
from benchmarks.gpu_model.instructions import kernel_of
from tests.cuda_on_cpu.tracing import SECTOR_BYTES, Launch, Trace

REGISTERS = 65536
"""Of a multiprocessor."""
THREADS = 2048
SHARED_BYTES = 227 << 10
BLOCKS = 32
SCHEDULERS = 4
L1_SECTORS = 4
"""That the first-level cache gives in a cycle: as much as shared memory's wavefront."""


@dataclass
class Work:
    """What a launch, or several of one kernel, ask of a GPU.

    Attributes:
        kernel: its name.
        launches: how many.
        blocks: of all launches.
        dram_bytes: that must come from or go to memory if the call fits the second-level cache.
        dram_bytes_beyond: the same if it does not.
        l2_bytes: between the multiprocessors and the second-level cache.
        sector_bytes: that requests move between the first-level cache and the warps.
        wanted_bytes: those of them that the threads asked for.
        l1_cycles: of one multiprocessor if it did all: sectors and wavefronts of shared memory.
        conflicts: wavefronts of shared memory beyond the least.
        wavefronts: of shared memory.
        issued: instructions of all warps; 0 where the machine code is not known.
        registers: of a thread; 0 where the machine code is not known.
        occupancy: share of a multiprocessor's threads that can be resident.
    """

    kernel: str
    launches: float
    blocks: float
    dram_bytes: float
    dram_bytes_beyond: float
    l2_bytes: float
    sector_bytes: float
    wanted_bytes: float
    l1_cycles: float
    conflicts: float
    wavefronts: float
    issued: float
    registers: int
    occupancy: float

    def plus(self, factor: float, other: Work) -> Work:
        """This plus a factor times the other, no less than nothing."""
        sums = {
            name: max(getattr(self, name) + factor * getattr(other, name), 0.0) for name in ADDED
        }
        return replace(self, **sums)

    def less(self, other: Work) -> Work:
        """The difference, which may be negative where memory is used again."""
        return replace(self, **{n: getattr(self, n) - getattr(other, n) for n in ADDED})


ADDED = (
    "launches",
    "blocks",
    "dram_bytes",
    "dram_bytes_beyond",
    "l2_bytes",
    "sector_bytes",
    "wanted_bytes",
    "l1_cycles",
    "conflicts",
    "wavefronts",
    "issued",
)


def occupancy(threads: int, registers: int, shared_bytes: int) -> float:
    """Share of a multiprocessor's threads that blocks of this kernel can fill."""
    warps = -(-threads // 32)
    by_registers = REGISTERS // (-(-max(registers, 16) // 8) * 8 * 32 * warps)
    by_shared = SHARED_BYTES // (shared_bytes + 1024)
    blocks = min(BLOCKS, THREADS // (32 * warps), by_registers, by_shared)
    return blocks * 32 * warps / THREADS


def work_of(launch: Launch) -> Work:
    """What a traced launch asks for."""
    kernel = kernel_of(launch)
    registers = kernel.registers if kernel else 0
    sectors = launch.total("sectors")
    stored = launch.total("sectors", ("store", "atomic"))
    wavefronts = launch.total("wavefronts")
    return Work(
        kernel=launch.name,
        launches=1,
        blocks=launch.blocks,
        dram_bytes=SECTOR_BYTES * (launch.fresh_read + launch.fresh_written),
        dram_bytes_beyond=SECTOR_BYTES * (launch.read + launch.written),
        l2_bytes=SECTOR_BYTES * (launch.read_a_block + stored),
        sector_bytes=SECTOR_BYTES * sectors,
        wanted_bytes=sum(s.lane_bytes for s in launch.sites if not s.shared),
        l1_cycles=sectors / L1_SECTORS + wavefronts,
        conflicts=wavefronts - launch.total("least_wavefronts"),
        wavefronts=wavefronts,
        issued=kernel.issued(launch) if kernel else 0,
        registers=registers,
        occupancy=occupancy(launch.threads, registers, launch.shared_bytes),
    )


def copied(trace: Trace) -> list[Work]:
    """The runtime's memsets and copies, as work that only moves bytes."""
    works = []
    for name, sizes in (("memset", trace.memsets), ("memcpy", trace.memcpys)):
        moved = sum(sizes) * (2 if name == "memcpy" else 1)
        if sizes:
            zeros = dict.fromkeys(ADDED, 0.0)
            zeros |= {"launches": len(sizes), "dram_bytes_beyond": moved, "l2_bytes": moved}
            works.append(Work(name, **zeros, registers=0, occupancy=1.0))
    return works


def seconds(work: Work, device: Device, fits: bool) -> tuple[float, str]:
    """The modelled time of a kernel's launches, and what decides it.

    Args:
        work: the sum of launches that are alike.
        device: where.
        fits: whether the call's memory stays in the second-level cache from launch to launch.
    """
    at_work = min(device.multiprocessors, max(1.0, work.blocks / max(work.launches, 1)))
    cycles = at_work * device.hertz
    times = {
        "DRAM": (work.dram_bytes if fits else work.dram_bytes_beyond) / device.dram_bandwidth,
        "L2": work.l2_bytes / device.l2_bandwidth,
        "L1": work.l1_cycles / cycles,
        "issue": work.issued / (SCHEDULERS * cycles),
    }
    launches = work.launches * device.launch_seconds
    longest = max(times, key=times.__getitem__)
    return times[longest] + launches, longest if times[longest] > launches else "launch"


def fits_l2(works: Iterable[Work], device: Device) -> bool:
    """Whether all that the call touches stays in the second-level cache."""
    return sum(w.dram_bytes for w in works) <= device.l2_bytes
