"""Benchmark of the losses of upsampled logits: a training step's forward and backward pass.

python -m benchmarks.upsample_cross_entropy [--threads 2] [--loss NAME] [--csv FILE] [--memory]

The rivals are torch's two ops in both layouts and under torch.compile. Bytes of the floor: logits
read twice, their gradient written, targets read twice, a float for each pixel written and read.
Operations of the floor: for a pixel and a class interpolation and an exponential, 14 forward, and
these and the gradient's sums, 18 backward.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
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

OURS = "fastseg"
SHAPES = {
    "8x21x65x65 to 513x513": ((8, 21, 65, 65), (513, 513)),
    "4x19x64x128 to 512x1024": ((4, 19, 64, 128), (512, 1024)),
}
OPERATIONS = 14 + 18


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the mean by torch's two ops."""
    full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(full, target)


def dice(logits: Tensor, target: Tensor) -> Tensor:
    """Returns MONAI's mean by torch's ops."""
    full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    p = full.softmax(1)
    hit = F.one_hot(target, p.shape[1]).movedim(-1, 1)
    over = (2, 3)
    score = 2 * (p * hit).sum(over) + 1e-5
    return (1 - score / (p.sum(over) + hit.sum(over) + 1e-5)).mean()


def focal(logits: Tensor, target: Tensor) -> Tensor:
    """Returns the mean by torch's ops."""
    full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)
    losses = F.cross_entropy(full, target, reduction="none")
    return ((1 - (-losses).exp()) ** 2 * losses).mean()


LOSSES = {
    "cross_entropy": (fastseg.upsample_cross_entropy, cross_entropy),
    "dice_loss": (fastseg.upsample_dice_loss, dice),
    "focal_loss": (fastseg.upsample_focal_loss, focal),
}


def inputs(shape: str) -> tuple[Tensor, Tensor]:
    """Returns logits, and a map of classes in patches as large as objects are."""
    size, pixels = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator) * 3
    coarse = torch.randn((*size[:2], 9, 9), generator=generator)
    target = F.interpolate(coarse, pixels, mode="bilinear").argmax(1)
    return logits, target


def step(loss, logits: Tensor, target: Tensor) -> Tensor:
    """Returns the gradient of logits."""
    (grad,) = torch.autograd.grad(loss(logits, target), logits)
    return grad


def case(name: str, shape: str, device: str = "cpu") -> Case:
    """Returns a loss's case of one shape."""
    ours, theirs = LOSSES[name]
    logits, target = (t.to(device) for t in inputs(shape))
    last = logits.contiguous(memory_format=torch.channels_last).requires_grad_()
    logits.requires_grad_()
    compiled = torch.compile(theirs, fullgraph=True, dynamic=False)
    candidates = [
        Candidate(OURS, partial(step, ours, logits, target)),
        Candidate("eager", partial(step, theirs, logits, target)),
        Candidate("eager channels_last", partial(step, theirs, last, target)),
        Candidate("torch.compile", partial(step, compiled, logits, target)),
    ]

    def check():
        grads = [c.run() for c in candidates]
        for grad in grads[1:]:
            largest = float(grad.abs().max())
            torch.testing.assert_close(grads[0], grad, rtol=0, atol=1e-4 * largest)

    pixels = target.numel()
    floor = 3 * nbytes(logits) + 2 * nbytes(target) + 2 * 4 * pixels
    return Case(
        f"upsample_{name}", shape, candidates, check, floor, OPERATIONS * pixels * logits.shape[1]
    )


def print_memory(name: str) -> None:
    """Prints the MiB that a first step of each adds to the largest resident set of a process."""
    for shape in SHAPES:
        sizes = []
        for which in (0, 1):
            command = [sys.executable, "-m", "benchmarks.upsample_cross_entropy", "--step"]
            out = subprocess.run(
                [*command, name, shape, str(which)], capture_output=True, text=True, check=True
            )
            sizes.append(float(out.stdout.split()[-1]))
        print(f"{name:<14} {shape}: {sizes[0]:.0f} MiB, eager {sizes[1]:.0f} MiB")


def print_step_memory(name: str, shape: str, which: str) -> None:
    """Prints those of one step in this process, after a small one that loads what it needs."""
    loss = LOSSES[name][int(which)]
    step(loss, torch.zeros(1, 2, 3, 3, requires_grad=True), torch.zeros(1, 9, 9).long())
    size, pixels = SHAPES[shape]
    logits = torch.randn(size, requires_grad=True)
    target = torch.randint(0, size[1], (size[0], *pixels))  # without a peak of its own
    before = resident_peak()
    step(loss, logits, target)
    print((resident_peak() - before) / 1024)


def resident_peak() -> int:
    """Returns the KiB of the largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each case")
    parser.add_argument("--loss", action="append", choices=LOSSES, help="default: all")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.step:
        print_step_memory(*arguments.step)
        return
    names = arguments.loss or list(LOSSES)
    if arguments.memory:
        for name in names:
            print_memory(name)
        return
    bandwidth = copy_bandwidth("cpu")
    print(f"{machine('cpu')}, copy {bandwidth / 1e9:.1f} GB/s")
    cases = [case(name, shape) for name in names for shape in SHAPES]
    measure(cases, "cpu", arguments.seconds)
    for c in cases:
        print(summary_row(f"{c.op} {c.shape}", [c], OURS, bandwidth))
        rate = c.flops / c.median(OURS) / 1e9
        print(f"{'':<44} {rate:9.1f} GFLOP/s, of {c.flops / 1e9:.1f} GFLOP")
    if arguments.csv:
        write_csv(arguments.csv, "cpu", cases)


if __name__ == "__main__":
    main()
