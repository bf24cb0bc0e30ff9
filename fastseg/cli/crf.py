"""Refine a segmentation along the edges of its picture with a dense CRF.

``--tune`` finds the CRF's bandwidths and weights on pictures whose true masks are known.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastseg._core.devices import named_device
from fastseg._core.pairwise import PairwiseBilateral, PairwiseGaussian
from fastseg.cli.crf_input import (
    DEFAULT_IGNORE,
    MAX_LABELS,
    check_no_mask,
    label_energies,
    read_ids,
    read_unary,
    warn_of_shades,
)
from fastseg.cli.crf_tuning import add_tuning_options, run_tuning
from fastseg.cli.options import (
    add_config_option,
    add_machine_options,
    add_output_option,
    use_threads,
)
from fastseg.data.image import (
    ImageWarning,
    check_writable,
    is_turned,
    read_image,
    write_png,
)
from fastseg.data.label_sets import voc_palette
from fastseg.data.overlay import class_shares, overlay, present_classes
from fastseg.ops import dense_crf

EXAMPLES = """examples:
  fastseg crf photo.jpg --labels mask.png -o crf.png
  fastseg crf --tune --images img --masks mask --split run/split.json --weights run/best.pt
  fastseg crf photo.jpg --unary out/photo.npz --kind softmax --config tuned/crf.json
"""

DEFAULT_OUTPUT = Path("crf.png")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `fastseg crf`."""
    parser.add_argument(
        "image", type=Path, nargs="?", help="any picture that Pillow can read; not with --tune"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--unary",
        type=Path,
        help="a network's output (labels, H, W), .npy or .npz; with --tune a folder of them, with "
        "the pictures' names",
    )
    source.add_argument(
        "--labels",
        type=Path,
        help="a segmentation, palette or grey PNG of ids, not of shades: a mask holds 0 and 1",
    )
    source.add_argument("--weights", help="with --tune: a network that computes the outputs")
    parser.add_argument(
        "--kind",
        choices=("logits", "softmax", "energy"),
        default="logits",
        help="what --unary holds (default: %(default)s)",
    )
    parser.add_argument(
        "--gt-prob", type=float, default=0.7, help="that a label is right (default: %(default)s)"
    )
    parser.add_argument("--ignore", type=int, help="id of unsure pixels (default: 255)")
    parser.add_argument("--num-labels", type=int, help="of --labels; default: the highest id + 1")
    parser.add_argument(
        "--gaussian",
        type=float,
        nargs=2,
        metavar=("SXY", "WEIGHT"),
        default=(3, 3),
        help="smoothness; weight 0 leaves it out (default: 3 3)",
    )
    parser.add_argument(
        "--bilateral",
        type=float,
        nargs=3,
        metavar=("SXY", "SRGB", "WEIGHT"),
        default=(80, 13, 10),
        help="appearance; weight 0 leaves it out (default: 80 13 10)",
    )
    parser.add_argument("--iterations", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--quality",
        choices=("compat", "high", "exact"),
        default="high",
        help="of the filter; compat is pydensecrf's (default: %(default)s)",
    )
    add_machine_options(parser)
    add_output_option(parser, help=f"default: {DEFAULT_OUTPUT}")
    parser.add_argument(
        "--compare", type=Path, metavar="PNG", help="also a picture of before and after"
    )
    add_tuning_options(parser)
    add_config_option(parser)


def run(options: argparse.Namespace) -> int:
    """Refines a segmentation, writes the labels and prints their shares before and after."""
    if options.tune:
        return run_tuning(options)
    if options.image is None or options.weights is not None:
        raise ValueError(
            "give a picture with --unary or --labels, or --tune; a network's own pictures are "
            "refined by fastseg segment --crf"
        )
    options.output = options.output or DEFAULT_OUTPUT
    device = named_device(options.device)
    use_threads(options.threads)
    for path in filter(None, (options.output, options.compare)):
        check_writable(path)
    image = read_image(options.image)
    turned = is_turned(options.image)
    palette = None
    if options.unary:
        energies = read_unary(options.unary, options.kind, image, turned)
        before = energies.argmin(0).to(torch.uint8).numpy()
    else:
        before, palette = read_ids(options.labels, image, turned)
        if options.ignore is None:
            check_no_mask(options.labels, before)
            options.ignore = DEFAULT_IGNORE
        if options.num_labels is None:
            warn_of_shades(options.labels, before)
        energies = label_energies(
            options.labels, before, options.gt_prob, options.ignore, options.num_labels
        )
    if turned and not (options.labels and is_turned(options.labels)):
        warnings.warn(
            f"{options.image} is turned upright by its orientation tag; "
            f"{options.labels or options.unary} has none and is taken to be upright",
            ImageWarning,
            stacklevel=2,
        )
    palette = palette or voc_palette()
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)

    start = time.perf_counter()
    try:
        q = dense_crf(
            energies.to(device),
            pixels.to(device),
            _terms(options),
            iterations=options.iterations,
            quality=options.quality,
        )
    except RuntimeError as error:  # infinite energies, bandwidths that no lattice can number
        raise ValueError(error) from None
    after = q.argmax(0).to(torch.uint8).cpu().numpy()
    seconds = time.perf_counter() - start

    picture = Image.fromarray(after)
    picture.putpalette(sum(palette, ()))
    write_png(picture, options.output)
    _print_shares(options, image, before, after, seconds)
    if options.compare:
        names = [f"label {k}" for k in range(MAX_LABELS)]
        labelings = {"before": before, "after": after}
        write_png(overlay(image, labelings, names, palette), options.compare)
        print(f"before and after in {options.compare}")
    return 0


def _print_shares(options, image, before: np.ndarray, after: np.ndarray, seconds: float) -> None:
    changed = float((before != after).mean())
    print(
        f"{options.image}: {image.width} x {image.height}, {options.iterations} iterations, "
        f"quality {options.quality}, {seconds:.2f} s; {changed:.1%} of the pixels changed"
    )
    shares = [class_shares(labels, MAX_LABELS) for labels in (before, after)]
    for k in present_classes(np.maximum(*shares)):
        unsure = options.labels and k == options.ignore
        name = "unsure" if unsure else f"label {k}"
        print(f"  {name:<10} {shares[0][k]:6.1%} -> {shares[1][k]:6.1%}")
    print(f"written to {options.output}")


def _terms(options: argparse.Namespace) -> list:
    (sxy, weight), terms = options.gaussian, []
    if weight != 0:
        terms.append(PairwiseGaussian(sxy, weight))
    sxy, srgb, weight = options.bilateral
    if weight != 0:
        terms.append(PairwiseBilateral(sxy, srgb, weight))
    return terms
