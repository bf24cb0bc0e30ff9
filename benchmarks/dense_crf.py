"""Benchmarks of the dense CRF: whole calls, lattices and iterations beside pydensecrf's.

python -m benchmarks.dense_crf [--device cpu|cuda] [--image FILE] [--row TEXT] [--csv FILE]

The rival is pydensecrf, from the package pydensecrf or pydensecrf2 (pip install pydensecrf2);
without one it is left out and the output says so. "drop-in" is fastseg.compat.pydensecrf, the
same calls on numpy arrays; "compat" and "high" are fastseg.dense_crf. A row whose drop-in or compat
result differs from pydensecrf's Q by more than 1e-4 is not timed.

Memory is the peak of the process during a call beside what it held before, inputs included in
that, each candidate in a process of its own.

Floor of a call. Bytes: in each iteration the unary (4 N L) and the lattices' entries (8 N D1 each)
once, Q once at the end; the vertices stay in the caches. FLOPs: in each iteration and lattice 4 N
D1 L for slice and splat and 4 M D1 L for the blur, and about 20 N L for the softmax; D1 is the
number of a simplex's vertices, M the number of those that the lattice has.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import fastseg
import fastseg.compat.pydensecrf
from benchmarks import allocators
from benchmarks.harness import (
    Candidate,
    Case,
    copy_bandwidth,
    machine,
    measure,
    write_csv,
)

try:
    import pydensecrf.densecrf as peer
except ImportError as error:
    peer, WHY_NO_PEER = None, f"pydensecrf is left out: {error}; pip install pydensecrf2"

TOLERANCE = 1e-4
COMPATIBILITY = {"gaussian": 3, "bilateral": 10}
CORNERS = (3, 6)
"""Vertices of a simplex of the Gaussian's lattice and of the bilateral's."""


@dataclass(frozen=True)
class Row:
    """A size and the parameters that people use."""

    width: int
    height: int
    labels: int
    gaussian: float
    bilateral: float
    colour: float
    iterations: int
    threads: int | None = None  # default: --threads

    @property
    def name(self) -> str:
        threads = f", {self.threads} thread" if self.threads else ""
        return (
            f"{self.width}x{self.height}x{self.labels}, {self.gaussian:g}, "
            f"{self.bilateral:g}/{self.colour:g}, {self.iterations} iterations{threads}"
        )


ROWS = (
    Row(500, 375, 21, 3, 80, 13, 10),
    Row(500, 375, 21, 3, 80, 13, 10, threads=1),
    Row(500, 375, 21, 3, 49, 5, 10),
    Row(500, 375, 21, 1, 67, 3, 10),
    Row(500, 375, 2, 3, 80, 13, 10),
    Row(500, 375, 150, 3, 80, 13, 5),
    Row(1000, 750, 21, 3, 80, 13, 5),
    Row(2048, 1024, 19, 3, 80, 13, 5),
)


class Problem:
    """A row's inputs, as each candidate takes them, and its candidates."""

    def __init__(self, row: Row, image: Image.Image, device: str):
        self.row, self.device = row, device
        self.picture = np.array(image.convert("RGB").resize((row.width, row.height)))
        coarse = 3 * torch.randn(1, row.labels, 12, 16, generator=torch.Generator().manual_seed(0))
        logits = F.interpolate(coarse, (row.height, row.width), mode="bilinear")
        self.unary = -F.log_softmax(logits, 1)
        self.energies = self.unary.reshape(row.labels, -1).numpy()
        self.tensors = (
            self.unary.to(device),
            torch.from_numpy(self.picture).permute(2, 0, 1)[None].contiguous().to(device),
        )
        self.terms = [
            fastseg.PairwiseGaussian(row.gaussian, COMPATIBILITY["gaussian"]),
            fastseg.PairwiseBilateral(row.bilateral, row.colour, COMPATIBILITY["bilateral"]),
        ]

    def pydensecrf(self, library) -> np.ndarray:
        """Runs the steps of a script for pydensecrf."""
        d = self.densecrf(library)
        return np.array(d.inference(self.row.iterations))

    def densecrf(self, library):
        """Returns the CRF with its terms."""
        row = self.row
        d = library.DenseCRF2D(row.width, row.height, row.labels)
        d.setUnaryEnergy(self.energies)
        d.addPairwiseGaussian(sxy=row.gaussian, compat=COMPATIBILITY["gaussian"])
        d.addPairwiseBilateral(
            sxy=row.bilateral,
            srgb=row.colour,
            rgbim=self.picture,
            compat=COMPATIBILITY["bilateral"],
        )
        return d

    def op(self, quality: str, tensors: list[torch.Tensor] | None = None) -> torch.Tensor:
        """Runs fastseg.dense_crf."""
        return fastseg.dense_crf(
            *(tensors or self.tensors), self.terms, iterations=self.row.iterations, quality=quality
        )

    @cached_property
    def candidates(self) -> dict[str, Callable[[], object]]:
        """The candidates by their names."""
        ops = {quality: partial(self.op, quality) for quality in ("compat", "high")}
        if self.device == "cuda":
            return ops | {"exact": partial(self.op, "exact")}
        ops = {"drop-in": partial(self.pydensecrf, fastseg.compat.pydensecrf)} | ops
        return ops | ({"pydensecrf": partial(self.pydensecrf, peer)} if peer else {})

    def check(self) -> None:
        """Raises AssertionError if compat is not what the reference computes."""
        compat, high = self.op("compat").cpu(), self.op("high").cpu()
        if self.device == "cuda":
            on_cpu = [t.cpu() for t in self.tensors]
            expected = self.op("compat", on_cpu)
            self.expect(compat, expected, "compat on the GPU and on the CPU")
        else:
            ours = torch.from_numpy(self.candidates["drop-in"]()).view(self.unary.shape)
            theirs = self.candidates["pydensecrf"]() if peer else compat.numpy()
            theirs = torch.from_numpy(theirs).view(self.unary.shape)
            name = "pydensecrf" if peer else "compat"
            self.expect(ours, theirs, f"the drop-in and {name}")
            self.expect(compat, theirs, f"compat and {name}")
        same = (high.argmax(1) == compat.argmax(1)).double().mean()
        assert same > 0.9, f"high and compat agree on {same:.1%} of the pixels only"

    @staticmethod
    def expect(a: torch.Tensor, b: torch.Tensor, what: str) -> None:
        difference = (a - b).abs().max().item()
        assert difference <= TOLERANCE, f"Q of {what} differ by {difference:.1e}"

    def vertices(self) -> list[int]:
        """Returns the numbers of vertices of the compat lattices."""
        return [self.densecrf(fastseg.compat.pydensecrf)._crf.vertex_count(k) for k in (0, 1)]

    def floor_bytes(self) -> int:
        """Returns the bytes of a call, see the top of the file."""
        row, points = self.row, self.row.width * self.row.height
        moved = 4 * points * row.labels + 8 * points * sum(CORNERS)
        return row.iterations * moved + 4 * points * row.labels

    def flops(self, vertices: list[int]) -> float:
        """Returns the FLOPs of a call for the lattices' numbers of vertices."""
        row, points = self.row, self.row.width * self.row.height
        flops = 20.0 * points * row.labels
        for simplex, count in zip(CORNERS, vertices, strict=True):
            flops += 4.0 * (points + count) * simplex * row.labels
        return row.iterations * flops


def synthetic_image() -> Image.Image:
    """Draws smooth regions with sharp borders and some noise, whose lattices are like a photo's."""
    rng = np.random.default_rng(0)
    regions = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    shades = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8))
    size = (1000, 750)
    picture = np.array(regions.resize(size, Image.Resampling.NEAREST), np.float32)
    picture += 0.25 * np.array(shades.resize(size, Image.Resampling.BICUBIC), np.float32)
    return Image.fromarray(
        (picture / 1.25 + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)
    )


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Returns the most memory during a call beyond that before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before

    def status(key: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(key):
                return 1024 * int(line.split()[1])
        return 0

    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def peak_in_a_process(options: argparse.Namespace, row: Row, candidate: str) -> int:
    """Returns `peak_bytes` of one candidate in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.dense_crf", "--device", options.device]
    command += ["--threads", str(options.threads), "--peak", row.name, candidate]
    if options.image:
        command += ["--image", str(options.image)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_peak(options: argparse.Namespace, image: Image.Image) -> None:
    """Prints the number that `peak_in_a_process` reads."""
    name, candidate = options.peak
    row = next(r for r in ROWS if r.name == name)
    torch.set_num_threads(row.threads or options.threads)
    small = Problem(Row(32, 24, 2, 3, 80, 13, 1), image, options.device)
    small.candidates[candidate]()  # loads what is loaded once
    problem = Problem(row, image, options.device)
    print(peak_bytes(problem.candidates[candidate], options.device))


def run(options: argparse.Namespace, image: Image.Image) -> list[Case]:
    """Checks, times and prints every row."""
    bandwidth = copy_bandwidth(options.device)
    print(f"copy {bandwidth / 1e9:.1f} GB/s; {machine(options.device)}; torch {torch.__version__}")
    if peer is None:
        print(WHY_NO_PEER)
    cases = []
    for row in ROWS:
        if options.row and options.row not in row.name:
            continue
        torch.set_num_threads(row.threads or options.threads)
        problem = Problem(row, image, options.device)
        candidates = [Candidate(name, call) for name, call in problem.candidates.items()]
        bytes_moved, vertices = problem.floor_bytes(), problem.vertices()
        case = Case("dense_crf", row.name, candidates, problem.check, bytes_moved)
        measure([case], options.device, options.seconds, options.rounds, warm_up=1)
        floor_ms = bytes_moved / bandwidth * 1e3
        print(
            f"\n{row.name}; vertices {vertices}; floor {floor_ms:.1f} ms at copy speed "
            f"({bytes_moved / 1e6:.0f} MB), {problem.flops(vertices) / 1e9:.1f} GFLOP"
        )
        for name in problem.candidates:
            line = f"  {name:<11} {case.median(name) * 1e3:9.1f} ms"
            if peer and options.device == "cpu":
                line += f"  {case.median('pydensecrf') / case.median(name):6.2f}x"
            if not options.no_memory:
                line += f"  peak {peak_in_a_process(options, row, name) / 2**20:8.1f} MiB"
            print(line, flush=True)
        print(f"  high / compat: {case.median('high') / case.median('compat'):.2f}")
        case.candidates = [Candidate(c.name, lambda: None) for c in candidates]  # frees the inputs
        case.check = lambda: None
        cases.append(case)
    return cases


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    parser.add_argument("--image", type=Path, help="default: a synthetic one")
    parser.add_argument("--row", help="only rows whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each row")
    parser.add_argument("--rounds", type=int, default=5, help="at least, of each candidate")
    parser.add_argument("--no-memory", action="store_true", help="do not measure memory")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    parser.add_argument("--peak", nargs=2, metavar=("ROW", "CANDIDATE"), help=argparse.SUPPRESS)
    allocators.add_option(parser)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    image = Image.open(options.image) if options.image else synthetic_image()
    if options.peak:
        print_peak(options, image)
        return
    if not allocators.measures_here(options):
        return
    cases = run(options, image)
    if options.csv:
        write_csv(options.csv, options.device, cases)


if __name__ == "__main__":
    main()
