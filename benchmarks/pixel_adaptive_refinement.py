"""Benchmarks of pixel-adaptive refinement beside the published modules.

python -m benchmarks.pixel_adaptive_refinement [--row TEXT] [--variant par|pamr] [--csv FILE]

The rivals are the published computation, which keeps a copy of the masks for each neighbour, in
eager mode and under torch.compile, and the plain PyTorch reference, which does not. A row whose
results differ by more than 1e-5 is not timed. Memory is the peak of the process during a call
beside what it held before, each candidate in a process of its own.

Floor of N neighbours, C masks, K channels, P pixels, T iterations. Bytes: the weights (4 N P) once
written and once read in each iteration, masks in and out (8 C P) in each, the image once (4 K P).
FLOPs: 2 N C P in each iteration, and for the weights about N P (9 K + 15).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import fastseg
from benchmarks import allocators
from benchmarks.dense_crf import peak_bytes
from benchmarks.harness import (
    Candidate,
    Case,
    copy_bandwidth,
    machine,
    measure,
    without_tensors,
    write_csv,
)
from fastseg import reference
from fastseg._core.refinement import DIRECTIONS
from tests.refine.published_refinement import refine as published

MODULE = "benchmarks.pixel_adaptive_refinement"
TOLERANCE = 1e-5
DILATIONS = (1, 2, 4, 8, 12, 24)
OURS = "fastseg"


@dataclass(frozen=True)
class Row:
    """A size: masks of an image of three channels."""

    masks: int
    height: int
    width: int
    iterations: int = 10

    @property
    def name(self) -> str:
        return f"{self.masks}x{self.height}x{self.width}, {self.iterations} iterations"

    def floor(self) -> tuple[int, float]:
        """Returns bytes and FLOPs of a call, see the top of the file."""
        pixels, neighbors = self.height * self.width, len(DIRECTIONS) * len(DILATIONS)
        moved = 4 * neighbors * (1 + self.iterations) + 8 * self.masks * self.iterations + 12
        flops = neighbors * (2.0 * self.masks * self.iterations + 42)
        return moved * pixels, flops * pixels


ROWS = (Row(21, 512, 512), Row(21, 256, 256), Row(3, 224, 224))


def inputs(row: Row) -> tuple[Tensor, Tensor]:
    """Returns an image of smooth regions with noise, and masks."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    image = torch.nn.functional.interpolate(coarse, (row.height, row.width), mode="bilinear")
    image += 0.02 * torch.randn(image.shape, generator=generator)
    return image, torch.rand(1, row.masks, row.height, row.width, generator=generator)


def candidates(row: Row, variant: str, device: str = "cpu") -> dict[str, Callable[[], Tensor]]:
    """Returns the candidates by their names."""
    tensors = (t.to(device) for t in inputs(row))
    arguments = (*tensors, DILATIONS, row.iterations, variant)
    torch._dynamo.reset()
    compiled = torch.compile(published, fullgraph=True, dynamic=False)
    return {
        OURS: partial(fastseg.pixel_adaptive_refinement, *arguments),
        "published": partial(published, *arguments),
        "published, torch.compile": partial(compiled, *arguments),
        "reference": partial(reference.pixel_adaptive_refinement, *arguments),
    }


def peak_in_a_process(options: argparse.Namespace, row: Row, candidate: str) -> int:
    """Returns the peak of one candidate in a process of its own."""
    command = [sys.executable, "-m", MODULE, "--threads", str(options.threads)]
    command += ["--variant", options.variant, "--peak", row.name, candidate]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(options: argparse.Namespace) -> None:
    """Prints the number that `peak_in_a_process` reads."""
    name, candidate = options.peak
    row = next(r for r in ROWS if r.name == name)
    candidates(Row(2, 16, 16, 1), options.variant)[candidate]()  # loads what is loaded once
    print(peak_bytes(candidates(row, options.variant)[candidate], "cpu"))


def run(options: argparse.Namespace) -> list[Case]:
    """Checks, times and prints every row."""
    bandwidth = copy_bandwidth("cpu")
    print(f"copy {bandwidth / 1e9:.1f} GB/s; {machine('cpu')}; torch {torch.__version__}")
    cases = []
    for row in ROWS:
        if options.row and options.row not in row.name:
            continue
        calls = candidates(row, options.variant)

        def check(calls=calls):
            expected = calls["published"]()
            for name, call in calls.items():
                difference = (call() - expected).abs().max().item()
                assert difference <= TOLERANCE, f"{name} differs by {difference:.1e}"

        moved, flops = row.floor()
        ways = [Candidate(name, call) for name, call in calls.items()]
        title = f"{options.variant} {row.name}"
        case = Case("pixel_adaptive_refinement", title, ways, check, moved, flops)
        measure([case], "cpu", options.seconds, options.rounds, warm_up=1)
        print(
            f"\n{title}; floor {moved / bandwidth * 1e3:.1f} ms at copy speed "
            f"({moved / 1e6:.0f} MB), {flops / 1e9:.1f} GFLOP"
        )
        for name in calls:
            line = f"  {name:<25} {case.median(name) * 1e3:9.1f} ms"
            line += f"  {case.median(name) / case.median(OURS):7.1f}x"
            if not options.no_memory:
                line += f"  peak {peak_in_a_process(options, row, name) / 2**20:8.1f} MiB"
            print(line, flush=True)
        print(f"  {flops / case.median(OURS) / 1e9:.0f} GFLOP/s")
        cases.append(without_tensors(case))
    return cases


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--variant", choices=("par", "pamr"), default="par")
    parser.add_argument("--row", help="only rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each row")
    parser.add_argument("--rounds", type=int, default=3, help="at least, of each candidate")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    parser.add_argument("--peak", nargs=2, metavar=("ROW", "CANDIDATE"), help=argparse.SUPPRESS)
    allocators.add_option(parser)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    if options.peak:
        print_peak(options)
        return
    if not allocators.measures_here(options):
        return
    cases = run(options)
    if options.csv:
        write_csv(options.csv, "cpu", cases)


if __name__ == "__main__":
    main()
