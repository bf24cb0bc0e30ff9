"""The evaluation of a model over a data set during training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from fastseg.metrics import ConfusionMatrix
from fastseg.models import main_logits
from fastseg.train.processes import is_distributed, rank, world_size


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    dataset: Dataset[tuple[Tensor, Tensor]],
    *,
    bf16: bool = False,
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.channels_last,
    on_image: Callable[[], None] = lambda: None,
) -> ConfusionMatrix:
    """Returns the confusion matrix of a model over a data set, at the labels' resolution.

    The logits are resized bilinearly to the size of the label before the argmax. The processes of a
    distributed run share the pictures, and all get the whole matrix.

    Args:
        model: the model, on the device; it is put in evaluation mode.
        dataset: pairs of an image, float32 (3, H, W), and its label, int64 (H', W'): a data set of
            fastseg, which says which label does not count, or a Subset of one.
        bf16: whether to run under bfloat16 autocast.
        device: where the model is.
        memory_format: the images' layout.
        on_image: a function that is called after every image; an exception ends the evaluation.
    """
    model.eval()
    device = torch.device(device)
    matrix = ConfusionMatrix(model.num_classes, _ignored(dataset)).to(device)
    own = Subset(dataset, range(rank(), len(dataset), world_size()))
    # A loader draws a number for its workers; its own generator keeps the caller's untouched.
    images = DataLoader(own, generator=torch.Generator())
    for image, label in tqdm(images, "evaluate", leave=False, mininterval=1, disable=rank() > 0):
        image = image.to(device, memory_format=memory_format)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            logits = main_logits(model(image))
        matrix.update_from_logits(logits, label.to(device))
        on_image()
    return matrix.all_reduce() if is_distributed() else matrix


def _ignored(dataset: Dataset[tuple[Tensor, Tensor]]) -> int:
    """Returns the label of pixels that do not count."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset.ignore_index


def scores(matrix: ConfusionMatrix) -> dict[str, float]:
    """Returns mIoU, pixel accuracy and mean class accuracy by name."""
    return {
        "miou": matrix.mean_iou(),
        "pixel_accuracy": matrix.pixel_accuracy(),
        "class_accuracy": matrix.class_accuracy(),
    }
