"""Speeds up torchvision's DeepLab v3 with fastseg.optimize_.

    python examples/optimize_torchvision.py --size 513 --runs 5

It prints what was swapped, how far the results are apart, and the median times. The candidates take
turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_resnet50

import fastseg


def seconds(model: nn.Module, image: Tensor) -> float:
    """Returns how long one forward pass takes."""
    start = time.perf_counter()
    model(image)
    return time.perf_counter() - start


@torch.inference_mode()
def main(arguments: Sequence[str] | None = None) -> float:
    """Optimises the model; returns the largest difference, as a share of the largest logit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=513, help="height and width of the picture")
    parser.add_argument("--runs", type=int, default=5, help="runs that are timed")
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    theirs = deeplabv3_resnet50(weights=None, weights_backbone=None).eval()
    ours = copy.deepcopy(theirs)
    print(fastseg.optimize_(ours, mode="infer"))

    image = torch.randn(1, 3, options.size, options.size)
    expected, got = theirs(image)["out"], ours(image)["out"]
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    print(f"largest difference: {difference:.1e} of the largest logit")

    times = [(seconds(theirs, image), seconds(ours, image)) for _ in range(options.runs)]
    before, after = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    print(f"torch {before:.0f} ms, fastseg {after:.0f} ms: {before / after:.2f}x")
    return difference


if __name__ == "__main__":
    main()
