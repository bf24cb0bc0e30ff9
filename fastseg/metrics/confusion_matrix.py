"""Segmentation metrics from one confusion matrix.

Let ``n[i, j]`` be the number of pixels of class ``i`` predicted as ``j``, ``t[i] = sum_j n[i, j]``
the pixels labelled ``i`` and ``p[i] = sum_j n[j, i]`` those predicted so.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.metrics.metric import Metric, check_ids, check_maps, ratio
from fastseg.ops.head.confusion_matrix import confusion_matrix
from fastseg.ops.head.upsample_confusion_matrix import upsample_confusion_matrix


class ConfusionMatrix(Metric):
    """Accumulates the confusion matrix of a segmentation; rows are labels, columns predictions.

    Let ``n[i, j]`` be the number of pixels of class ``i`` predicted as ``j``, ``t[i]`` the number
    labelled ``i`` and ``p[i]`` the number predicted as ``i``. The scores of a class are accuracy or
    recall ``n[i, i] / t[i]``, precision ``n[i, i] / p[i]``, ``IoU[i] = n[i, i] / (t[i] + p[i] -
    n[i, i])`` and Dice or F1 ``2 n[i, i] / (t[i] + p[i])``; pixel accuracy is ``sum_i n[i, i] / sum
    n`` and the frequency-weighted IoU ``sum_i t[i] IoU[i] / sum n`` (Long, Shelhamer, Darrell, CVPR
    2015, section 5).

    A class of which a score would be 0 / 0 is absent: for IoU and Dice it is neither labelled nor
    predicted, for recall it is not labelled, for precision not predicted. There are two conventions
    for its score, which the argument ``absent`` chooses:

    - None (default): it is nan, and the class is left out of the mean. Papers on segmentation count
      so.
    - a number, 0 or 1: it is that number, which counts in the mean. This is ``zero_division`` of
      scikit-learn.

    A class that is predicted but never labelled has IoU 0, which does count in the mean IoU.

    Args:
        num_classes: number of classes C, with ids 0 to C - 1.
        ignore_index: label of pixels that are not counted; None counts all.
    """

    def _zeros(self) -> dict[str, Tensor]:
        return {"counts": torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)}

    @property
    def counts(self) -> Tensor:
        """The counts, an int64 (C, C) tensor on the CPU."""
        return self.sums["counts"].cpu()

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds the pixels of a batch, by :func:`fastseg.confusion_matrix`.

        Args:
            prediction: predicted class ids, an integer tensor of any shape.
            label: true class ids, an integer tensor of the same shape.

        Raises:
            ValueError: the shapes differ, or an id of a counted pixel is not 0 to C - 1 (on a GPU
                a device-side assert).
            TypeError: a tensor that is not of integers.
        """
        check_maps(prediction, label)
        classes, ignored = self.num_classes, self.ignore_index
        try:
            counts = confusion_matrix(prediction, label, classes, ignore_index=ignored)
        except RuntimeError:
            check_ids(prediction, label, classes, ignored)  # says which, in this function's words
            raise
        self._add({"counts": counts})

    def update_from_logits(
        self, logits: Tensor, label: Tensor, *, align_corners: bool = False
    ) -> None:
        """Adds a batch by its logits, which are upsampled bilinearly to the label's size.

        Neither logits of full size nor a class map is stored; see
        :func:`fastseg.upsample_confusion_matrix`.

        Args:
            logits: (N, C, h, w), floating-point.
            label: true class ids (N, H, W), an integer tensor.
            align_corners: as in ``F.interpolate``.

        Raises:
            ValueError: logits of another number of classes.
            RuntimeError: wrong shapes or dtypes, or an id of a counted pixel that is not 0 to C - 1
                (on a GPU a device-side assert).
        """
        if logits.dim() != 4 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"logits must be (N, {self.num_classes}, h, w), got {tuple(logits.shape)}"
            )
        counts = upsample_confusion_matrix(
            logits, label, align_corners=align_corners, ignore_index=self.ignore_index
        )
        self._add({"counts": counts})

    def compute(self) -> dict[str, float]:
        """Returns all scores by name, absent classes left out of means; nan of no pixel."""
        return {
            "pixel_accuracy": self.pixel_accuracy(),
            "class_accuracy": self.class_accuracy(),
            "mean_iou": self.mean_iou(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
            "mean_dice": self.mean_dice(),
            "mean_precision": self.mean_precision(),
            "mean_recall": self.mean_recall(),
        }

    def pixel_accuracy(self) -> float:
        """Returns the fraction of labelled pixels predicted right; nan if there are none."""
        return ratio(self.counts.diagonal().sum(), self.counts.sum()).item()

    def class_accuracies(self, absent: float | None = None) -> Tensor:
        """Returns the accuracy of each class, float64 (C,); one with no label is absent."""
        return ratio(self.counts.diagonal(), self.counts.sum(1), absent)

    def class_accuracy(self, absent: float | None = None) -> float:
        """Returns the mean accuracy over the classes."""
        return self.class_accuracies(absent).nanmean().item()

    def ious(self, absent: float | None = None) -> Tensor:
        """Returns the IoU of each class, float64 (C,)."""
        correct = self.counts.diagonal()
        return ratio(correct, self.counts.sum(0) + self.counts.sum(1) - correct, absent)

    def mean_iou(self, absent: float | None = None) -> float:
        """Returns the mean IoU over the classes."""
        return self.ious(absent).nanmean().item()

    def frequency_weighted_iou(self) -> float:
        """Returns the mean IoU weighted by the pixels of each class; nan if there are none."""
        labelled = self.counts.sum(1)
        return ratio((labelled * self.ious(absent=0)).sum(), labelled.sum()).item()

    def dice_scores(self, absent: float | None = None) -> Tensor:
        """Returns the Dice score, which is F1, of each class, float64 (C,)."""
        return ratio(2 * self.counts.diagonal(), self.counts.sum(0) + self.counts.sum(1), absent)

    def mean_dice(self, absent: float | None = None) -> float:
        """Returns the mean Dice score over the classes."""
        return self.dice_scores(absent).nanmean().item()

    def precisions(self, absent: float | None = None) -> Tensor:
        """Returns the precision of each class, float64 (C,); one never predicted is absent."""
        return ratio(self.counts.diagonal(), self.counts.sum(0), absent)

    def mean_precision(self, absent: float | None = None) -> float:
        """Returns the mean precision over the classes."""
        return self.precisions(absent).nanmean().item()

    def recalls(self, absent: float | None = None) -> Tensor:
        """Returns the recall of each class, which is its accuracy, float64 (C,)."""
        return self.class_accuracies(absent)

    def mean_recall(self, absent: float | None = None) -> float:
        """Returns the mean recall over the classes, which is the class accuracy."""
        return self.class_accuracy(absent)
