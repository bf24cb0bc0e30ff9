"""Score weights on CamVid: ``python -m fastseg.train.evaluate --weights FILE --data DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fastseg.cli.running import run_command
from fastseg.data import CAMVID_CLASSES, CamVid, check_is_camvid
from fastseg.data.transforms import label_tensor
from fastseg.models import finish
from fastseg.segment.segmenter import Segmenter, refining_crf, shipped_weights
from fastseg.train.evaluation import evaluate, scores


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and prints a table; returns :func:`run_command`'s exit status."""
    return run_command("error", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastseg.train.evaluate", description=__doc__)
    shipped = ", ".join(shipped_weights())
    parser.add_argument("--weights", required=True, help=f"a checkpoint, or one of {shipped}")
    parser.add_argument("--data", required=True, type=Path, help="CamVid folder")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--crf", action="store_true", help="refine as `fastseg segment --crf` does")
    parser.add_argument("--backend", default="fastseg", choices=("fastseg", "torch"))
    options = parser.parse_args(arguments)
    segmenter = Segmenter.load(options.weights, backend=options.backend)
    if list(segmenter.classes) != list(CAMVID_CLASSES):
        raise ValueError(
            f"{options.weights} knows {len(segmenter.classes)} classes, "
            f"{', '.join(segmenter.classes[:3])}, ...: other ones than CamVid's"
        )
    dataset = CamVid(options.data, options.split, Prepared(segmenter))
    check_is_camvid(dataset)
    model = segmenter.model
    if options.crf:
        finish(model, crf=refining_crf(model.num_classes), backend=options.backend)
    matrix = evaluate(model.to(memory_format=torch.channels_last), dataset)
    for name, value in scores(matrix).items():
        print(f"{name:<16} {value:.4f}")
    for name, value in zip(CAMVID_CLASSES, matrix.ious().tolist(), strict=True):
        print(f"IoU {name:<12} {value:.4f}")
    return 0


class Prepared:
    """The transform of a data set's samples that weights ask for; labels keep their resolution.

    Args:
        segmenter: the segmenter of the weights.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter

    def __call__(
        self, image: Image.Image, label: Image.Image, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Returns the network's input, float32 (3, H, W), and the untouched label."""
        return self.segmenter.prepare(image)[0], label_tensor(label)


if __name__ == "__main__":
    sys.exit(main())
