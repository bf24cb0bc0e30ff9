"""Scores within bands around the true boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.metrics.boundaries import VOID, class_maps, contour, squared_distances
from fastseg.metrics.confusion_matrix import ConfusionMatrix
from fastseg.metrics.metric import Metric, integer
from fastseg.ops.head.confusion_matrix import confusion_matrix


class TrimapCurve(Metric):
    """Scores of the pixels within bands of several widths around the true boundaries.

    The narrower the band, the more its score tells of contours (Kohli, Ladický, Torr, IJCV 2009;
    Krähenbühl and Koltun, NIPS 2011, whose curves these are). A pixel that has another class above,
    below, left or right of it is on the boundary, which so is two pixels wide. The band of width w
    is the pixels on both sides of it at a Euclidean distance of at most w - 1 from one on the
    boundary: w pixels on each side of a straight one. Ignored pixels are in no band and make no
    boundary.

    Args:
        num_classes: number of classes C, with ids 0 to C - 1.
        ignore_index: label of pixels that are not counted; None counts all.
        widths: the bands' widths in pixels, at least 1.

    Raises:
        ValueError: num_classes or a width is not positive, or there is none.
        TypeError: num_classes, ignore_index or a width is no integer.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        *,
        widths: Sequence[int] = (1, 2, 4, 8, 16),
    ) -> None:
        self.widths = tuple(integer("widths", width) for width in widths)
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be whole numbers from 1 up, got {self.widths}")
        super().__init__(num_classes, ignore_index)

    def _zeros(self) -> dict[str, Tensor]:
        shape = len(self.widths), self.num_classes, self.num_classes
        return {"counts": torch.zeros(shape, dtype=torch.int64)}

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds the images of a batch.

        Args:
            prediction: predicted class ids, an integer tensor (H, W) or (N, H, W).
            label: true class ids, an integer tensor of the same shape.

        Raises:
            ValueError: the shapes differ or do not fit, or an id of a counted pixel is no class.
            TypeError: a tensor that is not of integers.
        """
        predicted, true = class_maps(prediction, label, self.num_classes, self.ignore_index)
        farthest = sum(true.shape[-2:])  # no pixels lie farther apart
        distances = squared_distances(contour(true), min(max(self.widths) - 1, farthest))
        counts = [
            confusion_matrix(
                predicted,
                torch.where(distances <= min(width - 1, farthest) ** 2, true, VOID),
                self.num_classes,
                ignore_index=VOID,
            )
            for width in self.widths
        ]
        self._add({"counts": torch.stack(counts)})

    def compute(self) -> dict[str, float]:
        """Returns mean IoU and pixel accuracy by names such as ``mean_iou_within_4``."""
        scores = {}
        for width in self.widths:
            matrix = self.within(width)
            scores[f"mean_iou_within_{width}"] = matrix.mean_iou()
            scores[f"pixel_accuracy_within_{width}"] = matrix.pixel_accuracy()
        return scores

    def within(self, width: int) -> ConfusionMatrix:
        """Returns the confusion matrix of the band of one of the widths, with all its scores."""
        matrix = ConfusionMatrix(self.num_classes, self.ignore_index)
        matrix.sums = {"counts": self.sums["counts"][self.widths.index(width)].clone()}
        return matrix
