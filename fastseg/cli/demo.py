"""Show what fastseg does on a photo: classes, a rough mask, the dense CRF, and the time of each.

The photo comes with the package, and nothing is downloaded. The first row is the photo, the classes
of the network that comes with the package, and these after the dense CRF. The second is a rough
mask (scribbles on this photo; squares of the classes on another), and what the dense CRF makes of
it. Times stand beside torch's, and pydensecrf's where it is installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastseg.cli.options import (
    add_config_option,
    add_output_option,
    use_threads,
)
from fastseg.cli.timing import Row, interleaved_medians, table
from fastseg.data.image import check_writable, read_image, write_png
from fastseg.ops import dense_crf, upsample_argmax
from fastseg.segment.demo import (
    PHOTO_CREDIT,
    RoughMask,
    draw_demo,
    photo_file,
    scribbles,
    squares,
)
from fastseg.segment.segmenter import Segmenter, highest_class, refine

EXAMPLES = """examples:
  fastseg demo
  fastseg demo street.jpg -o street_demo.png
"""

LARGEST = 640
"""Pixels of the longer side to which a picture is scaled down: three stand in a row."""

UNSURE = 0.88
"""Mean confidence below which a picture is told to be unlike what the network was trained on.

It was 0.89 to 0.96 on each of 28 of CamVid's validation and test pictures, and below 0.88 on most
of 22 of PASCAL VOC's, whose median is 0.81.
"""

ITERATIONS = 10
"""Of the dense CRF that is timed, pydensecrf's example's."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg demo`."""
    parser.add_argument("image", nargs="?", help="a picture (default: the package's photo)")
    add_output_option(
        parser, default=Path("demo.png"), metavar="PNG", help="the picture (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's)")
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the picture of the demonstration, prints the times, and a warning if one is due."""
    use_threads(options.threads)
    check_writable(options.output)
    path = options.image or photo_file()
    picture = read_image(path)
    picture.thumbnail((LARGEST, LARGEST))
    size = (picture.height, picture.width)
    segmenter = Segmenter.load()
    segmenter.model.to(memory_format=torch.channels_last)
    x = segmenter.prepare(picture).to(memory_format=torch.channels_last)
    logits = segmenter(x)
    labels, confidence = upsample_argmax(logits, size, return_confidence=True)
    labels = labels[0].numpy()
    labelings = {
        segmenter.name: labels,
        "after the dense CRF": highest_class(refine(logits, picture), size),
    }
    rough = (
        squares(labels, segmenter.classes, segmenter.palette)
        if options.image
        else scribbles(picture.size)
    )
    drawn = draw_demo(
        picture, labelings, segmenter.classes, segmenter.palette, rough, rough.refined(picture)
    )
    write_png(drawn, options.output)
    print(
        f"{path}: {picture.width} x {picture.height}" + f" ({PHOTO_CREDIT})" * (not options.image)
    )
    print(f"written to {options.output}")
    sure = float(confidence.mean())
    print(f"mean confidence of {segmenter.name}: {sure:.0%}")
    if sure < UNSURE:
        print(
            "fastseg: this picture is unlike the street scenes of Cambridge that the network was "
            "trained on, and its classes mean little (fastseg/weights/README.md)",
            file=sys.stderr,
        )
    rival = Segmenter.load(backend="torch")
    rival.model.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        runs = {"torch": lambda: rival(x), "fastseg": lambda: segmenter(x)}
        _print(f"{segmenter.name} on {tuple(x.shape)}", runs, "torch")
        runs = _crf_runs(rough, picture)
        what = f"dense CRF, {len(rough.names)} labels, {ITERATIONS} iterations, quality compat"
        _print(what, runs, "pydensecrf" if "pydensecrf" in runs else "fastseg")
    if "pydensecrf" not in runs:
        print("  pydensecrf is not installed, and torch has no dense CRF")
    return 0


def _print(title: str, runs: dict[str, Callable[[], object]], base: str) -> None:
    medians = interleaved_medians(runs, torch.device("cpu"))
    print(f"\n{title}, {torch.get_num_threads()} threads:")
    print(table([Row(name, seconds) for name, seconds in medians.items()], [base], base))


def _crf_runs(rough: RoughMask, picture: Image.Image) -> dict[str, Callable[[], object]]:
    """Returns the dense CRF with the filter of pydensecrf, and this itself if it is installed."""
    unary, pixels = rough.energies(), np.array(picture)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    runs = {"fastseg": lambda: dense_crf(unary, tensor, iterations=ITERATIONS, quality="compat")}
    try:
        dcrf = importlib.import_module("pydensecrf.densecrf")
    except ImportError:
        return runs
    flat = unary.flatten(1).numpy()

    def other() -> object:
        crf = dcrf.DenseCRF2D(picture.width, picture.height, len(flat))
        crf.setUnaryEnergy(flat)
        crf.addPairwiseGaussian(sxy=3, compat=3)
        crf.addPairwiseBilateral(sxy=80, srgb=13, rgbim=pixels, compat=10)
        return crf.inference(ITERATIONS)

    return {"pydensecrf": other, **runs}
