"""Benchmarks of the filter of DenseEnergyLoss beside the published C++ and pydensecrf's lattice.

OMP_NUM_THREADS=1 python -m benchmarks.dense_energy_loss [--published LIBRARY] [--csv FILE]

"bilateralfilter_batch" is fastseg.compat's function on numpy arrays, "loss" the whole layer with
its gradient, at scale 1. A rival is the published C++: clone github.com/meng-tang/rloss and build
its sources beside a function without classes, in pytorch/wrapper/bilateralfilter:

    echo '#include "bilateralfilter.hpp"
    extern "C" void filter_batch(float* i, float* s, float* o, int n, int k, int h, int w, float a,
        float b) { bilateralfilter_batch(i, n * 3 * h * w, s, n * k * h * w, o, n * k * h * w, n, k,
        h, w, a, b); }' > c.cpp
    g++ -O3 -fPIC -shared -fopenmp c.cpp bilateralfilter.cpp permutohedral.cpp -o librloss.so

Another is one iteration of pydensecrf with a bilateral term, which builds the same lattice and
filters twice, once for its normalisation: more than the published loss does. Without them they are
left out and the output says so. A row whose result differs from the published one by more than 1e-5
of its norm is not timed. All run on one thread; the published code gives each image one.

Floor: 4 (C + 2 K) bytes a pixel.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fastseg
from benchmarks.harness import Candidate, Case, measure, write_csv
from fastseg.compat.bilateralfilter import bilateralfilter_batch

try:
    import pydensecrf.densecrf as peer
except ImportError:
    peer = None

SIGMA_RGB = 15.0
TOLERANCE = 1e-5

ROWS = [
    # images, classes, height, width, sigma_xy
    (32, 2, 224, 224, 100.0),
    (32, 2, 224, 224, 50.0),
    (8, 21, 224, 224, 50.0),
    (4, 21, 320, 320, 50.0),
]


def crops(path: Path, n: int, h: int, w: int) -> np.ndarray:
    """Pieces of a picture as float32 (n, 3, h, w)."""
    picture = np.asarray(Image.open(path).convert("RGB"))
    rng = np.random.default_rng(0)
    pieces = []
    for _ in range(n):
        y = rng.integers(0, picture.shape[0] - h + 1)
        x = rng.integers(0, picture.shape[1] - w + 1)
        pieces.append(picture[y : y + h, x : x + w].transpose(2, 0, 1))
    return np.ascontiguousarray(np.stack(pieces), np.float32)


def published(library: str) -> Callable:
    """The published function, of a library that is built as above."""
    function = ctypes.CDLL(library).filter_batch
    floats = np.ctypeslib.ndpointer(np.float32, flags="C_CONTIGUOUS")
    function.argtypes = [floats] * 3 + [ctypes.c_int] * 4 + [ctypes.c_float] * 2
    function.restype = None
    return function


def one_iteration(images: np.ndarray, s: np.ndarray, sigma_xy: float) -> None:
    """One iteration of pydensecrf for each image."""
    k, h, w = s.shape[1:]
    for image, q in zip(images, s, strict=True):
        crf = peer.DenseCRF2D(w, h, k)
        crf.setUnaryEnergy(np.ascontiguousarray(-np.log(q).reshape(k, -1)))
        pixels = np.ascontiguousarray(image.transpose(1, 2, 0).astype(np.uint8))
        crf.addPairwiseBilateral(sigma_xy, SIGMA_RGB, pixels, 1)
        crf.inference(1)


def make_case(row: tuple, image: Path, rival: Callable | None) -> Case:
    """The candidates of a row of ROWS."""
    n, k, h, w, sigma_xy = row
    images, generator = crops(image, n, h, w), torch.Generator().manual_seed(0)
    s = torch.randn(n, k, h, w, generator=generator).softmax(1)
    flat, planes = images.ravel(), s.numpy().ravel()
    out, other = np.zeros_like(planes), np.zeros_like(planes)
    arguments = n, k, h, w, SIGMA_RGB, sigma_xy
    layer = fastseg.nn.DenseEnergyLoss(1e-7, SIGMA_RGB, sigma_xy, 1)
    pixels, leaf = torch.from_numpy(images), s.clone().requires_grad_()
    candidates = [
        Candidate(
            "bilateralfilter_batch", lambda: bilateralfilter_batch(flat, planes, out, *arguments)
        ),
        Candidate("loss", lambda: torch.autograd.grad(layer(pixels, leaf), leaf)),
    ]
    if rival is not None:
        candidates.append(Candidate("published", lambda: rival(flat, planes, other, *arguments)))
    if peer is not None:
        candidates.append(
            Candidate("pydensecrf", lambda: one_iteration(images, s.numpy(), sigma_xy))
        )

    def check():
        if rival is not None:
            candidates[0].run()
            rival(flat, planes, other, *arguments)
            difference = np.linalg.norm(out - other) / np.linalg.norm(other)
            assert difference < TOLERANCE, f"the results differ by {difference}"

    floor = 4 * n * h * w * (3 + 2 * k)
    return Case("bilateral_filter", f"{n}x{k}x{h}x{w}, {sigma_xy:g}/15", candidates, check, floor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    photo = Path(fastseg.__file__).parent / "weights" / "photo.jpg"
    parser.add_argument("--image", type=Path, default=photo)
    parser.add_argument("--published", help="the library of the published C++")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    if options.published and os.environ.get("OMP_NUM_THREADS") != "1":
        parser.error("set OMP_NUM_THREADS=1, so that the published code has one thread, too")
    torch.set_num_threads(1)
    rival = None
    if options.published:
        rival = published(options.published)
    else:
        print("the published C++ is left out: --published names its library")
    if peer is None:
        print("pydensecrf is left out: pip install pydensecrf2")
    cases = [make_case(row, options.image, rival) for row in ROWS]
    measure(cases, "cpu", min_rounds=5, warm_up=1)
    for case in cases:
        best = case.median("bilateralfilter_batch")
        print(case.shape)
        for candidate in case.candidates:
            seconds = case.median(candidate.name)
            print(f"  {candidate.name:22} {seconds * 1e3:9.1f} ms  {seconds / best:5.2f}x")
    if options.csv:
        write_csv(options.csv, "cpu", cases)


if __name__ == "__main__":
    main()
