"""Measures and checks fastseg on a GPU within a few minutes; benchmarks/gpu.sh calls it.

python -m benchmarks.gpu [--seconds 530] [--out build/gpu] [--modelled FILE] [SECTION ...]

Writes figures.csv, summary.txt and logs.tar.gz; each is up to date after each section.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.runner import Group, Results, Step, excerpts, run_group, run_step
from benchmarks.gpu.table import NOT_RUN, lines, read_modelled
from benchmarks.gpu.worker import OK

PYTHON = (sys.executable, "-m")
PYTEST = ("pytest", "-v", "--tb=short")
PYTEST += ("-n", "8") if importlib.util.find_spec("xdist") else ()
SANITIZER = ("compute-sanitizer", "--error-exitcode", "1")
SANITIZER += ("--target-processes", "application-only", "--tool")
NCU = ("ncu", "--clock-control", "none", "--profile-from-start", "off", "--kernel-id", ":::1")
NCU += ("--section", "SpeedOfLight", "--section", "MemoryWorkloadAnalysis")
NCU += ("--section", "WarpStateStats", "--section", "LaunchStats", "--section", "Occupancy")
"""Nsight Compute on the first launch of each kernel; clocks are left alone."""

SHAPES = (*PYTHON, "benchmarks.sanitize_shapes")
OURS = ("pool", "dense_crf", "heads")

SECTIONS: tuple[Group | Step, ...] = (
    Group("dense-crf", 90),
    Group("pooling", 60),
    Group("heads", 60),
    Group("conv", 150),
    Group("calls", 40),
    Step(
        "tests",
        120,
        {"pytest": (*PYTHON, *PYTEST, "-m", "gpu", "tests/gpu")},
        excerpt="^(FAILED|ERROR) ",
    ),
    Step("profile", 50, {"torch-profiler": (*PYTHON, "benchmarks.gpu.profile_calls")}),
    Step("ncu", 60, {"ncu": (*NCU, *PYTHON, "benchmarks.gpu.profile_calls", "--once")}),
    Step(
        "sanitize",
        120,
        {
            "memcheck": (*SANITIZER, "memcheck", *SHAPES, *OURS),
            "racecheck": (*SANITIZER, "racecheck", *SHAPES, *OURS),
            # No racecheck: what is shared within a program is Triton's business.
            "memcheck-conv": (*SANITIZER, "memcheck", *SHAPES, "atrous_conv2d"),
        },
        excerpt="^========= (Invalid|Error|ERROR|Race)",
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    ),
)
CALIBRATE: tuple[Group | Step, ...] = (
    Group("calibration", 40, "benchmarks.gpu.calibration"),
    Step(
        "autotune",
        190,
        {"autotune": (*PYTHON, "benchmarks.atrous_conv2d_autotune")},
        excerpt=r": Config\(",
    ),
)
FORMER = {
    "build": "benchmarks/gpu.sh prepare",
    "tests-cpu": 'python -m pytest -m "not gpu"',
    "models": "python -m benchmarks.optimize --device cuda --dtype bfloat16 --model SegNet --own",
}
"""Sections that there are no more, and what to call instead."""


def chosen(names: Sequence[str]) -> list[Group | Step]:
    """Returns the sections of these names; without names, those that run by default.

    Raises:
        ValueError: there is no section of a name.
    """
    known = {section.name: section for section in (*SECTIONS, *CALIBRATE)}
    for name in names:
        if name in FORMER:
            raise ValueError(f"section '{name}' is now: {FORMER[name]}")
        if name not in known and name != "calibrate":
            raise ValueError(f"no section '{name}'; there are: {', '.join(known)}, calibrate")
    if not names:
        return list(SECTIONS)
    wanted = {*names, *(s.name for s in CALIBRATE if "calibrate" in names)}
    return [section for name, section in known.items() if name in wanted]


def run(
    sections: Sequence[Group | Step], seconds: float, out: Path, modelled: Path
) -> list[dict[str, object]]:
    """Runs sections one after the other, prints the table and returns all rows.

    Args:
        sections: the sections.
        seconds: what all may take together.
        out: the folder for the files; it is made if need be.
        modelled: a CSV file of benchmarks.gpu_model; it may be missing.
    """
    deadline = time.monotonic() + seconds
    results = Results(out / "figures.csv")
    found: list[str] = []
    summary: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        for section in sections:
            print(f"=== {section.name}", flush=True)
            if isinstance(section, Group):
                run_group(section, deadline, results, logs)
            else:
                run_step(section, deadline, results, logs)
                found += excerpts(section, logs)
            machine = results.machine
            summary = lines(results.rows, read_modelled(modelled, machine), machine, found)
            (out / "summary.txt").write_text("\n".join(summary) + "\n")
            with tarfile.open(out / "logs.tar.gz", "w:gz") as archive:
                archive.add(logs, "logs")
    print("\n".join(["", *summary]), flush=True)
    return results.rows


def main() -> int:
    """Command line; returns whether something failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="default: all")
    parser.add_argument("--seconds", type=float, default=530.0, help="for all sections together")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="folder of the files")
    parser.add_argument(
        "--modelled", type=Path, default=Path("build/gpu_model.csv"), help="of benchmarks.gpu_model"
    )
    options = parser.parse_args()
    try:
        sections = chosen(options.sections)
    except ValueError as error:
        parser.error(str(error))
    rows = run(sections, options.seconds, options.out, options.modelled)
    return int(any(row["status"] not in (OK, NOT_RUN) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
