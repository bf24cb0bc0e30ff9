"""Models the CUDA kernels' time on a GPU, without one.

python -m benchmarks.gpu_model [OP ...] [--case TEXT] [--csv FILE]

Kernels are traced on the CPU (tests/cuda_on_cpu), and their counts turned into seconds by the rules
of docs/gpu_model.md. Nothing here was measured on a GPU.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_model.cases import Case, cases, long_cases
from benchmarks.gpu_model.devices import DEVICES
from benchmarks.gpu_model.model import Work, copied, fits_l2, seconds, work_of
from tests.cuda_on_cpu.tracing import Trace, traced

COLUMNS = ("op", "shape", "kernel", "launches", "sector_mb", "efficiency", "l2_mb", "dram_mb")
COLUMNS += ("conflicts", "instructions", "registers", "occupancy", "bound")
COLUMNS += tuple(f"{device.name}_us" for device in DEVICES)


def works_at(case: Case, call: Callable[[Any, int], object], size: int) -> dict[str, Work]:
    """Each kernel's work in a call at a traced size."""
    with Trace() as trace:
        call(traced(), size)
    totals: dict[str, Work] = {}
    for work in [*map(work_of, trace.launches), *copied(trace)]:
        before = totals.get(work.kernel)
        totals[work.kernel] = work.plus(1, before) if before else work
    syncs = trace.synchronizations
    print(f"{case.op} {case.shape}: traced at {size}, {syncs} waits of the host", flush=True)
    return totals


def further(small: dict[str, Work], large: dict[str, Work], steps: float) -> dict[str, Work]:
    """The larger works and, for each step, their difference once more."""
    return {
        kernel: work.plus(steps, work.less(small[kernel])) if kernel in small else work
        for kernel, work in large.items()
    }


def works(case: Case) -> list[Work]:
    """Each kernel's work at the wanted size."""
    low, high = case.traced

    def at_wanted_size(call: Callable[[Any, int], object]) -> dict[str, Work]:
        small, large = works_at(case, call, low), works_at(case, call, high)
        return further(small, large, (case.wanted - high) / (high - low))

    of_one = at_wanted_size(case.call)
    if case.of_two is None:
        return list(of_one.values())
    return list(further(of_one, at_wanted_size(case.of_two), case.images - 2).values())


def rows(case: Case) -> list[dict[str, object]]:
    """The table's rows: each kernel, then the call."""
    kernels = works(case)
    table = []
    totals = dict.fromkeys((d.name for d in DEVICES), 0.0)
    for work in kernels:
        times = {d.name: seconds(work, d, fits_l2(kernels, d)) for d in DEVICES}
        for name, (time, _) in times.items():
            totals[name] += time
        wanted = work.wanted_bytes / work.sector_bytes if work.sector_bytes else 1.0
        table.append(
            {
                "op": case.op,
                "shape": case.shape,
                "kernel": work.kernel,
                "launches": round(work.launches),
                "sector_mb": f"{work.sector_bytes / 1e6:.2f}",
                "efficiency": f"{wanted:.2f}",
                "l2_mb": f"{work.l2_bytes / 1e6:.2f}",
                "dram_mb": f"{work.dram_bytes / 1e6:.2f}",
                "conflicts": f"{work.conflicts / work.wavefronts:.2f}" if work.wavefronts else "",
                "instructions": f"{work.issued / 1e6:.2f}M" if work.issued else "",
                "registers": work.registers or "",
                "occupancy": f"{work.occupancy:.2f}",
                "bound": times[DEVICES[0].name][1],
                **{f"{n}_us": f"{1e6 * t:.1f}" for n, (t, _) in times.items()},
            }
        )
    floor = f"floor {1e6 * case.floor_bytes / DEVICES[0].dram_bandwidth:.1f}"
    call = dict.fromkeys(COLUMNS, "") | {"op": case.op, "shape": case.shape, "kernel": "the call"}
    call |= {"launches": round(sum(w.launches for w in kernels)), "bound": floor}
    call |= {f"{name}_us": f"{1e6 * total:.1f}" for name, total in totals.items()}
    return [*table, call]


def show(table: list[dict[str, object]], columns: Sequence[str]) -> None:
    """Prints columns of a table."""
    cells = [columns, *([str(row[c]) for c in columns] for row in table)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("op", nargs="*", help="names of ops; default: all")
    parser.add_argument(
        "--case",
        default="",
        help="only cases whose shape holds this text; the longest ones need it",
    )
    parser.add_argument("--csv", type=Path, help="writes the rows there too")
    options = parser.parse_args()
    known = [*cases(), *(long_cases() if options.case else [])]
    chosen = [c for c in known if not options.op or c.op in options.op]
    table = []
    for case in [c for c in chosen if options.case in c.shape]:
        of_case = rows(case)
        show(of_case, [c for c in COLUMNS if c not in ("op", "shape")])
        table += of_case
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(table)


if __name__ == "__main__":
    main()
