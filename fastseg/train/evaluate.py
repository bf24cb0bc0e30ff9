"""Score weights on CamVid: ``python -m fastseg.train.evaluate --weights FILE --data DIR``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastseg.cli.running import run_command
from fastseg.data import CAMVID_CLASSES, CAMVID_IGNORE, CamVid, check_is_camvid
from fastseg.data.transforms import label_tensor
from fastseg.metrics import ConfusionMatrix
from fastseg.models import finish, main_logits
from fastseg.segment.segmenter import Segmenter, shipped_weights


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, Tensor]],
    *,
    bf16: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> ConfusionMatrix:
    """Returns the confusion matrix of a model over a data set, at the labels' resolution.

    The logits are resized bilinearly to the size of the label before the argmax.

    Args:
        model: the model; it is put in evaluation mode.
        dataset: pairs of an image, float32 (3, H, W), and its CamVid label, int64 (H', W').
        bf16: whether to run under bfloat16 autocast.
        on_image: a function that is called after every image; an exception ends the evaluation.
    """
    model.eval()
    matrix = ConfusionMatrix(len(CAMVID_CLASSES), CAMVID_IGNORE)
    # A loader draws a number for its workers; its own generator keeps the caller's untouched.
    loader = DataLoader(dataset, generator=torch.Generator())
    for image, label in tqdm(loader, "evaluate", leave=False, mininterval=1):
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = main_logits(model(image))
        logits = F.interpolate(logits.float(), label.shape[1:], mode="bilinear")
        matrix.update(logits.argmax(1), label)
        on_image()
    return matrix


def scores(matrix: ConfusionMatrix) -> dict[str, float]:
    """Returns mIoU, pixel accuracy and mean class accuracy by name."""
    return {
        "miou": matrix.mean_iou(),
        "pixel_accuracy": matrix.pixel_accuracy(),
        "class_accuracy": matrix.class_accuracy(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and prints a table; returns :func:`run_command`'s exit status."""
    return run_command("error", lambda: _run(arguments))


def _run(arguments: list[str] | None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fastseg.train.evaluate", description=__doc__)
    shipped = ", ".join(shipped_weights())
    parser.add_argument("--weights", required=True, help=f"a checkpoint, or one of {shipped}")
    parser.add_argument("--data", required=True, type=Path, help="CamVid folder")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--crf", action="store_true", help="refine by a dense CRF, as DeepLab v2")
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
        finish(model, crf="post", backend=options.backend)
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
