"""The evaluation of a model over a data set, which training and the command share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from fastseg.data import CAMVID_CLASSES, CAMVID_IGNORE
from fastseg.metrics import ConfusionMatrix
from fastseg.models import main_logits


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
        matrix.update_from_logits(logits, label)
        on_image()
    return matrix


def scores(matrix: ConfusionMatrix) -> dict[str, float]:
    """Returns mIoU, pixel accuracy and mean class accuracy by name."""
    return {
        "miou": matrix.mean_iou(),
        "pixel_accuracy": matrix.pixel_accuracy(),
        "class_accuracy": matrix.class_accuracy(),
    }
