"""Segmentation metrics from one confusion matrix.

Let ``n[i, j]`` be the number of pixels of class ``i`` predicted as ``j``. Pixel accuracy is
``sum_i n[i, i] / sum n``, class accuracy ``n[i, i] / sum_j n[i, j]``, and intersection over union
``IoU[i] = n[i, i] / (sum_j n[i, j] + sum_j n[j, i] - n[i, i])`` (Long, Shelhamer, Darrell, CVPR
2015, section 5).

Absent classes do not count: a class with no labelled pixel is left out of the mean class
accuracy, and one that is neither labelled nor predicted is left out of mIoU. A class that is
predicted but never labelled has IoU 0 and does count in mIoU.
"""

from __future__ import annotations

import torch
from torch import Tensor


class ConfusionMatrix:
    """Accumulates the confusion matrix of a segmentation; rows are labels, columns predictions.

    Args:
        num_classes: number of classes C, with ids 0 to C - 1.
        ignore_index: label of pixels that are not counted; None counts all.

    Attributes:
        counts: int64 (C, C) tensor on the CPU.
    """

    def __init__(self, num_classes: int, ignore_index: int | None = None) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds the pixels of a batch.

        Args:
            prediction: integer tensor of class ids, any shape.
            label: integer tensor of the same shape.

        Raises:
            ValueError: the shapes differ, or an id outside 0 to C - 1 that is not ignored.
            TypeError: a tensor that is not of integers.
        """
        for name, tensor in (("prediction", prediction), ("label", label)):
            if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
                raise TypeError(f"{name} must hold integer class ids, got {tensor.dtype}")
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction and label must have one shape, got {tuple(prediction.shape)} and "
                f"{tuple(label.shape)}"
            )
        prediction, label = prediction.flatten().long(), label.flatten().long()
        if self.ignore_index is not None:
            counted = label != self.ignore_index
            prediction, label = prediction[counted], label[counted]
        if label.numel() == 0:
            return
        for name, ids in (("prediction", prediction), ("label", label)):
            low, high = (int(v) for v in ids.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(
                    f"{name} must hold ids 0 to {self.num_classes - 1}, got {low} to {high}"
                )
        pairs = label * self.num_classes + prediction
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        self.counts += counts.view(self.num_classes, self.num_classes).cpu()

    def pixel_accuracy(self) -> float:
        """Returns the fraction of labelled pixels predicted right; nan if there are none."""
        return _ratio(self.counts.diagonal().sum(), self.counts.sum()).item()

    def class_accuracies(self) -> Tensor:
        """Returns the accuracy of each class, float64 (C,); nan for a class with no label."""
        return _ratio(self.counts.diagonal(), self.counts.sum(1))

    def class_accuracy(self) -> float:
        """Returns the mean accuracy over the classes that are labelled."""
        return self.class_accuracies().nanmean().item()

    def ious(self) -> Tensor:
        """Returns the IoU of each class, float64 (C,); nan if neither labelled nor predicted."""
        correct = self.counts.diagonal()
        return _ratio(correct, self.counts.sum(0) + self.counts.sum(1) - correct)

    def mean_iou(self) -> float:
        """Returns the mean IoU over the classes that are labelled or predicted."""
        return self.ious().nanmean().item()


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Returns part / whole in float64, nan where whole is 0."""
    return part.double() / whole.double()
