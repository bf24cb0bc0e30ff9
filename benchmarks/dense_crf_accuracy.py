"""Errors of a dense CRF's lattices beside the exact Gaussians.

python -m benchmarks.dense_crf_accuracy --image FILE --weights FILE

For the filter error a network's labels, one plane each, are filtered by a bilateral kernel and
divided by filtered ones; the error is the relative L2 difference from the sums over all pairs of
pixels, by quality of the lattice. "compat" is pydensecrf's lattice.

The disagreement is the share of pixels whose label after 10 iterations of mean field is not that of
the exact kernels. This takes minutes; --no-mean-field leaves it out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import fastseg
from benchmarks.deeplab_mobilenet import deeplab_logits
from fastseg._core.pairwise import bilateral_features
from fastseg.ops import exact_gaussian_filter

SETTINGS = ((3, 80, 13, 10), (3, 49, 5, 4), (1, 67, 3, 4))
"""Bandwidths of positions, of the bilateral kernel and its colours; the latter's weight."""

LATTICES = ("compat", "high")
CUTOFF = 1e-6


def filter_errors(labels: Tensor, features: Tensor) -> dict[str, float]:
    """Returns the filter errors by quality.

    Args:
        labels: ids (H, W), int64.
        features: features (1, 5, H, W).
    """
    planes = F.one_hot(labels.flatten()).T.float()
    planes = planes[planes.sum(1) > 0]
    values = torch.cat([torch.ones_like(planes[:1]), planes])[None]

    def mean(sums: Tensor) -> Tensor:
        return (sums[0, 1:] / sums[0, :1]).double()

    exact = mean(exact_gaussian_filter(values, features.flatten(2), CUTOFF))
    errors = {}
    for quality in LATTICES:
        lattice = fastseg.PermutohedralLattice(features.flatten(2), quality=quality)
        difference = mean(lattice.filter(values)) - exact
        errors[quality] = (difference.norm() / exact.norm()).item()
    return errors


def disagreement(unary: Tensor, image: Tensor, setting: tuple) -> dict[str, float]:
    """Returns the share of pixels with another label than the exact mean field's, by quality."""
    gaussian, bilateral, colour, weight = setting
    terms = [
        fastseg.PairwiseGaussian(gaussian, 3),
        fastseg.PairwiseBilateral(bilateral, colour, weight),
    ]

    def labels(quality: str) -> Tensor:
        return fastseg.dense_crf(unary, image, terms, quality=quality).argmax(0)

    exact = labels("exact")
    return {q: (labels(q) != exact).double().mean().item() for q in LATTICES}


def line(title: str, results: dict[str, float]) -> str:
    """Returns a line with results in percent, and their ratio."""
    numbers = "  ".join(f"{q} {100 * results[q]:.3f} %" for q in LATTICES)
    return f"  {title:<14} {numbers}  ratio {results['high'] / max(results['compat'], 1e-12):.2f}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument(
        "--weights", type=Path, required=True, help="of benchmarks.deeplab_mobilenet"
    )
    parser.add_argument("--size", type=int, nargs=2, metavar=("W", "H"), help="default: as it is")
    parser.add_argument("--no-mean-field", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    torch.set_num_threads(options.threads)
    picture = Image.open(options.image).convert("RGB")
    if options.size:
        picture = picture.resize(options.size)
    array = np.array(picture)
    logits = deeplab_logits(torch.load(options.weights, weights_only=True), array)
    image = torch.from_numpy(array).permute(2, 0, 1).contiguous()
    for setting in SETTINGS:
        _, bilateral, colour, _ = setting
        print(f"{bilateral}/{colour}", flush=True)
        features = bilateral_features("", image[None], bilateral, colour, torch.float32)
        print(line("filter error", filter_errors(logits.argmax(0), features)), flush=True)
        if not options.no_mean_field:
            print(line("disagreement", disagreement(-logits, image, setting)), flush=True)


if __name__ == "__main__":
    main()
