"""Score a weights file on CamVid: ``python -m fastseg.evaluate --weights FILE --data DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastseg.checkpoint import load_model
from fastseg.data import CAMVID_CLASSES, CAMVID_IGNORE, CamVid, EvalTransform
from fastseg.metrics import ConfusionMatrix
from fastseg.models import finish, main_logits


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    *,
    bf16: bool = False,
    on_image: Callable[[], None] = lambda: None,
) -> ConfusionMatrix:
    """Return the confusion matrix of a model over a data set, at the labels' resolution.

    The logits are resized bilinearly to the size of the label before the argmax.

    Args:
        model: the model; it is put in evaluation mode.
        dataset: pairs of an image, float32 (3, H, W), and its CamVid label, int64 (H', W').
        bf16: whether to run under bfloat16 autocast.
        on_image: called after every image; what it raises ends the evaluation.
    """
    model.eval()
    matrix = ConfusionMatrix(len(CAMVID_CLASSES), CAMVID_IGNORE)
    for image, label in tqdm(DataLoader(dataset), "evaluate", leave=False, mininterval=1):
        image = image.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = main_logits(model(image))
        logits = F.interpolate(logits.float(), label.shape[1:], mode="bilinear")
        matrix.update(logits.argmax(1), label)
        on_image()
    return matrix


def scores(matrix: ConfusionMatrix) -> dict[str, float]:
    """Return mIoU, pixel accuracy and mean class accuracy by name."""
    return {
        "miou": matrix.mean_iou(),
        "pixel_accuracy": matrix.pixel_accuracy(),
        "class_accuracy": matrix.class_accuracy(),
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and print a table."""
    parser = argparse.ArgumentParser(prog="python -m fastseg.evaluate", description=__doc__)
    parser.add_argument("--weights", required=True, type=Path, help="file of saved weights")
    parser.add_argument("--data", required=True, type=Path, help="CamVid folder")
    parser.add_argument("--split", default="val", choices=("train", "val", "test"))
    parser.add_argument("--crf", action="store_true", help="refine by a dense CRF, as DeepLab v2")
    parser.add_argument("--backend", default="fastseg", choices=("fastseg", "torch"))
    options = parser.parse_args(arguments)
    model, metadata = load_model(options.weights, backend=options.backend)
    if options.crf:
        finish(model, crf="post", backend=options.backend)
    dataset = CamVid(options.data, options.split, EvalTransform(metadata["short_side"]))
    matrix = evaluate(model.to(memory_format=torch.channels_last), dataset)
    for name, value in scores(matrix).items():
        print(f"{name:<16} {value:.4f}")
    for name, value in zip(CAMVID_CLASSES, matrix.ious().tolist(), strict=True):
        print(f"IoU {name:<12} {value:.4f}")


if __name__ == "__main__":
    main()
