"""Counts of pairs of true classes and classes predicted by upsampled logits."""

from __future__ import annotations

from torch import Tensor

from fastseg.reference.head.confusion_matrix import confusion_matrix
from fastseg.reference.head.upsample_argmax import upsample


def upsample_confusion_matrix(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int | None = None
) -> Tensor:
    """Computes :func:`fastseg.upsample_confusion_matrix`, image by image."""
    classes = logits.shape[1]
    counts = target.new_zeros((classes, classes)).long()
    if target.numel() == 0:
        return counts
    for image, label in zip(logits.split(1), target.split(1), strict=True):
        prediction = upsample(image, label.shape[1:], align_corners).argmax(1)
        counts += confusion_matrix(prediction, label, classes, ignore_index)
    return counts
