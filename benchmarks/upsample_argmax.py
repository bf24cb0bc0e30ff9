"""Benchmark of the class map of upsampled logits.

python -m benchmarks.upsample_argmax [--device cpu|cuda] [--dtype float32] [--csv FILE]

The rivals are torch's two ops, eager in both layouts and compiled. Bytes of the floor: the logits
and the class map, once. FLOPs: two multiply-adds a pixel and class along the row.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from benchmarks import allocators
from benchmarks.harness import (
    Candidate,
    Case,
    copy_bandwidth,
    machine,
    measure,
    nbytes,
    summary_row,
    write_csv,
)

SHAPES = (
    ((1, 21, 65, 65), (513, 513)),
    ((1, 19, 128, 256), (1024, 2048)),
    ((1, 150, 128, 128), (512, 512)),
)
OURS = "fastseg"


def noise(shape: tuple[int, ...], device: str) -> Tensor:
    """Returns logits without any structure: each class is possible everywhere."""
    return torch.randn(shape, device=device)


def blobs(shape: tuple[int, ...], device: str) -> Tensor:
    """Returns logits as of a network: smooth, and sure of one class in most places."""
    n, c, h, w = shape
    return F.avg_pool2d(torch.randn(n, c, h + 12, w + 12, device=device), 13, 1) * 30


def two_ops(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Computes the class map by logits of full size."""
    return F.interpolate(logits, size, mode="bilinear").argmax(1)


def case_of(logits: Tensor, size: tuple[int, int], name: str) -> Case:
    """Returns the case of these logits."""
    ours = partial(fastseg.upsample_argmax, logits, size)
    compiled = torch.compile(two_ops, fullgraph=True, dynamic=False)
    channels_last = logits.contiguous(memory_format=torch.channels_last)

    def check():
        full = F.interpolate(logits.float(), size, mode="bilinear")
        chosen = full.gather(1, ours().long()[:, None])[:, 0]
        torch.testing.assert_close(chosen, full.amax(1), rtol=1e-5, atol=2e-5)

    candidates = [
        Candidate(OURS, ours),
        Candidate("fastseg channels_last", partial(fastseg.upsample_argmax, channels_last, size)),
        Candidate("eager", partial(two_ops, logits, size)),
        Candidate("eager channels_last", partial(two_ops, channels_last, size)),
        Candidate("torch.compile", partial(compiled, logits, size)),
    ]
    n, c, h, w = logits.shape
    shape = f"{name} {n}x{c}x{h}x{w} to {size[0]}x{size[1]} {logits.dtype}".replace("torch.", "")
    flops = 4.0 * n * c * size[0] * size[1]
    return Case("upsample_argmax", shape, candidates, check, nbytes(logits, ours()), flops)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each case")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    allocators.add_option(parser)
    arguments = parser.parse_args()
    if not allocators.measures_here(arguments):
        return
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    bandwidth = copy_bandwidth(arguments.device)
    print(
        f"copy {bandwidth / 1e9:.1f} GB/s; {machine(arguments.device)}; torch {torch.__version__}"
    )
    cases = []
    for make in (noise, blobs):
        for shape, size in SHAPES:
            torch._dynamo.reset()
            logits = make(shape, arguments.device).to(getattr(torch, arguments.dtype))
            case = case_of(logits, size, make.__name__)
            measure([case], arguments.device, arguments.seconds)
            rivals = [c for c in case.candidates if c.name != "fastseg channels_last"]
            row = summary_row(case.shape, [replace(case, candidates=rivals)], OURS, bandwidth)
            print(row, flush=True)
            cases.append(case)
    if arguments.csv:
        write_csv(arguments.csv, arguments.device, cases)


if __name__ == "__main__":
    main()
