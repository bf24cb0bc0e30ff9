"""Benchmarks of the exact distance transform, and of the Hausdorff loss on it.

python -m benchmarks.distance_transform [--device cpu|cuda] [--case TEXT] [--csv FILE]

The rivals are scipy's distance_transform_edt and OpenCV's exact distanceTransform (2-D, spacing 1),
image by image as both take no batch, and MONAI's HausdorffDTLoss; those that are not installed are
left out and the output says so. Masks are what makes a transform fast or slow: blobs large and
small, thin lines, noise, and a zero that is far from all others. Floor: a byte of mask in, a
float32 distance out; of the loss, input and target in.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fastseg
from benchmarks.harness import Candidate, Case, machine, measure, nbytes, write_csv

OURS = "fastseg"
TOLERANCE = {"scipy": 0, "OpenCV": 1e-3}
"""Difference that is allowed beside a rounding."""


def optional(name: str) -> ModuleType | None:
    """Imports a rival, or says that it is left out."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"{name} is left out: {error}")
        return None


def blobs(shape: tuple[int, ...], size: int) -> Tensor:
    """Returns masks of smooth objects that are about so many elements wide."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(shape[0], 1, *(n // size for n in shape[1:]), generator=generator)
    mode = "bicubic" if len(shape) == 3 else "trilinear"
    return F.interpolate(coarse, size=shape[1:], mode=mode)[:, 0] > 0


def masks(batch: int, side: int) -> dict[str, Tensor]:
    """Returns masks (batch, side, side) by their names."""
    shape = batch, side, side
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(shape, generator=generator)
    filled, i = torch.ones(shape, dtype=torch.bool), torch.arange(side)
    one_zero, diagonal = filled.clone(), filled.clone()
    one_zero[:, 0, 0] = False
    diagonal[:, i, i] = False
    edges = blobs(shape, 32)
    disc = (i - side // 2).square() + (i - side // 2).square()[:, None] < (0.49 * side) ** 2
    return {
        "blobs of 64": blobs(shape, 64),
        "blobs of 16": blobs(shape, 16),
        "around thin lines": edges == edges.roll(1, 1),
        "thin lines": edges != edges.roll(1, 1),
        "noise, 50 % zeros": noise < 0.5,
        "noise, 1 % zeros": noise < 0.99,
        "disc": disc.expand(shape).contiguous(),
        "diagonal of zeros": diagonal,
        "one zero": one_zero,
    }


def image_by_image(function: Callable[[np.ndarray], np.ndarray], mask: Tensor) -> Tensor:
    """Returns a rival's distances of a batch that it takes in single images."""
    return torch.from_numpy(np.stack([function(image) for image in mask.cpu().numpy()]))


def transform(name: str, mask: Tensor, spacing, rivals: dict[str, ModuleType | None]) -> Case:
    """Returns the case of a mask (N, H, W) or (N, D, H, W)."""
    ours = partial(fastseg.distance_transform, mask, mask.dim() - 1, spacing=spacing)
    candidates = [Candidate(OURS, ours)]
    if rivals["scipy.ndimage"]:
        edt = partial(rivals["scipy.ndimage"].distance_transform_edt, sampling=spacing)
        candidates.append(Candidate("scipy", partial(image_by_image, edt, mask)))
    if (cv2 := rivals["cv2"]) and mask.dim() == 3 and spacing is None:
        cv2.setNumThreads(torch.get_num_threads())

        def precise(image: np.ndarray) -> np.ndarray:
            return cv2.distanceTransform(image, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)

        candidates.append(Candidate("OpenCV", partial(image_by_image, precise, mask.byte())))

    def check():
        actual = ours()
        for rival in candidates[1:]:
            expected = rival.run().to(actual)
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=TOLERANCE[rival.name])

    return Case("distance_transform", name, candidates, check, nbytes(mask) + nbytes(ours()))


def hausdorff(shape: tuple[int, ...], device: str, monai: ModuleType | None) -> Case:
    """Returns the case of the Hausdorff loss of (N, C, ...) with its gradient."""
    images, classes = shape[:2]
    labels = blobs((images, *shape[2:]), 32).long()[:, None].to(device)
    logits = torch.randn(shape, device=device).requires_grad_()

    def step(loss: torch.nn.Module) -> tuple[Tensor, ...]:
        value = loss(logits, labels)
        return value.detach(), *torch.autograd.grad(value, logits)

    options = {"to_onehot_y": True, "softmax": True}
    losses = {OURS: fastseg.nn.HausdorffDTLoss(**options)}
    if monai:
        losses["MONAI"] = monai.HausdorffDTLoss(**options)

    def check():
        first, *others = map(step, losses.values())
        for other in others:
            torch.testing.assert_close(first, other, rtol=1e-4, atol=1e-6)

    candidates = [Candidate(name, partial(step, loss)) for name, loss in losses.items()]
    name = f"{images} x {classes} classes x {' x '.join(map(str, shape[2:]))}"
    return Case("HausdorffDTLoss, a step", name, candidates, check, nbytes(logits, labels))


def cases(device: str) -> Iterator[Case]:
    """Yields all cases."""
    rivals = {name: optional(name) for name in ("scipy.ndimage", "cv2", "monai.losses")}
    for name, mask in masks(8, 1024).items():
        yield transform(f"8 x 1024 x 1024, {name}", mask.to(device), None, rivals)
    image = blobs((8, 1024, 1024), 64).to(device)
    yield transform("8 x 1024 x 1024, blobs, spacing 1, 0.7", image, (1.0, 0.7), rivals)
    volume = blobs((2, 128, 128, 128), 16).to(device)
    yield transform("2 x 128 x 128 x 128, blobs", volume, None, rivals)
    yield transform("2 x 128 x 128 x 128, spacing 3, 1, 1", volume, (3.0, 1.0, 1.0), rivals)
    yield hausdorff((4, 4, 256, 256), device, rivals["monai.losses"])
    yield hausdorff((1, 3, 96, 96, 96), device, rivals["monai.losses"])


def main() -> None:
    """Measures the cases that the options choose, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--case", default="", help="text that the case's name holds")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    print(machine(options.device))
    measured = []
    for case in cases(options.device):
        if options.case not in f"{case.op}, {case.shape}":
            continue
        measure([case], options.device, min_seconds=0.5, min_rounds=5, warm_up=1)
        measured.append(case)
        times = {c.name: case.median(c.name) for c in case.candidates}
        row = "  ".join(f"{n} {t * 1e3:8.2f} ms ({t / times[OURS]:.1f}x)" for n, t in times.items())
        print(f"{case.op}, {case.shape:44} {row}", flush=True)
    if options.csv:
        write_csv(options.csv, options.device, measured)


if __name__ == "__main__":
    main()
