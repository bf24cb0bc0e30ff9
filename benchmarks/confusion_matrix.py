"""fastseg.confusion_matrix and torch.bincount of ``target * C + prediction``, interleaved.

Label maps of 1024x2048 with 19 classes, as Cityscapes has them, of two kinds: blobs, whose classes
are constant over long runs as those of photos are, and noise, in which no pixel is like its
neighbour. The floor is reading both maps once, at the speed of a large copy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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

CLASSES = 19
VOID = 255
SIZE = (1024, 2048)
OURS = "fastseg"
DTYPES = {"uint8": torch.uint8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64}


def blobs(size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns a prediction and a truth that differ along the borders of the regions."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, CLASSES, 12, 24, generator=generator)
    fine = torch.randn(1, CLASSES, 96, 192, generator=generator)
    logits = F.interpolate(coarse, size, mode="bicubic")
    details = F.interpolate(fine, size, mode="bilinear")
    return (logits + 0.05 * details).argmax(1)[0], logits.argmax(1)[0]


def noise(size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns a prediction and a truth of independent pixels."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(CLASSES, size, generator=generator) for _ in range(2))


KINDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"blobs": blobs, "noise": noise}


def by_bincount(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns the confusion matrix as it is usually computed."""
    pairs = target.long() * CLASSES + prediction
    return torch.bincount(pairs.flatten(), minlength=CLASSES**2).view(CLASSES, CLASSES)


def by_bincount_without_void(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns the confusion matrix of the pixels whose truth is not VOID."""
    counted = target != VOID
    return by_bincount(prediction[counted], target[counted])


def case(kind: str, name: str, size: tuple[int, int], device: str, void: bool) -> Case:
    """Returns the case of two maps of one dtype."""
    prediction, target = (t.to(device, DTYPES[name]) for t in KINDS[kind](size))
    rival, ignore_index = by_bincount, None
    if void:
        target[: size[0] // 8] = VOID
        rival, ignore_index = by_bincount_without_void, VOID

    def ours() -> Tensor:
        return fastseg.confusion_matrix(prediction, target, CLASSES, ignore_index=ignore_index)

    def theirs() -> Tensor:
        return rival(prediction, target)

    def check() -> None:
        assert torch.equal(ours(), theirs()), "counts differ from torch's"

    shape = f"{size[0]}x{size[1]} {name} {kind}" + " with void" * void
    candidates = [Candidate(OURS, ours), Candidate("bincount", theirs)]
    return Case("confusion_matrix", shape, candidates, check, nbytes(prediction, target))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="torch threads on the CPU")
    parser.add_argument("--seconds", type=float, default=1.0, help="at least, for each case")
    parser.add_argument("--csv", type=Path, help="write all medians here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bandwidth = copy_bandwidth(options.device)
    print(f"copy {bandwidth / 1e9:.1f} GB/s; {machine(options.device)}; torch {torch.__version__}")
    cases = [
        case(kind, name, SIZE, options.device, void)
        for kind in KINDS
        for name in DTYPES
        for void in (False, True)
        if not void or name in ("uint8", "int64")
    ]
    cases += [case("blobs", "int64", (16, 16), options.device, False)]
    for one in cases:
        measure([one], options.device, options.seconds)
        print(summary_row(one.shape, [one], OURS, bandwidth), flush=True)
    if options.csv:
        write_csv(options.csv, options.device, cases)


if __name__ == "__main__":
    main()
