"""Counts of pairs of true and predicted classes."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = None
) -> Tensor:
    """Computes :func:`fastseg.confusion_matrix`, which explains the arguments."""
    prediction, target = prediction.flatten().long(), target.flatten().long()
    counted = torch.ones_like(target, dtype=torch.bool)
    if ignore_index is not None:
        counted = target != ignore_index
    _check_ids("prediction", prediction, counted, num_classes)
    _check_ids("target", target, counted, num_classes)
    pairs = torch.where(counted, target * num_classes + prediction, num_classes**2)
    counts = pairs.new_zeros(num_classes**2 + 1)  # the last one: pixels that do not count
    counts.scatter_add_(0, pairs, torch.ones_like(pairs))
    return counts[:-1].view(num_classes, num_classes)


def _check_ids(name: str, ids: Tensor, counted: Tensor, num_classes: int) -> None:
    """Raises RuntimeError, on a GPU as a device-side assert, where an id is no class."""
    inside = ((ids >= 0) & (ids < num_classes)) | ~counted
    message = f"fastseg::confusion_matrix: {name} must hold ids 0 to {num_classes - 1}"
    if ids.device.type == "cpu" and not inside.all():
        low, high = (int(v) for v in ids[counted].aminmax())
        raise RuntimeError(f"{message}, got {low} to {high}")
    torch._assert_async(inside.all(), message)
