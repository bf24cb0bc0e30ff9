"""F1 of contours."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.metrics.boundaries import (
    Unit,
    check_distance,
    class_maps,
    contour_points,
    in_pixels,
    near,
)
from fastseg.metrics.metric import Metric, ratio


class BoundaryF1(Metric):
    """Boundary F1: whether predicted contours lie near the true ones, and these near them.

    The contour of a class is its pixels that have another class above, below, left or right of
    them, inside the image. Precision is the fraction of the predicted contour that has a pixel of
    the true contour of the class within the tolerance, recall the converse, and F1 their harmonic
    mean (Csurka, Larlus, Perronnin, "What is a good evaluation measure for semantic segmentation?",
    BMVC 2013). A distance is Euclidean, between centres of pixels, and one that equals the
    tolerance is within it.

    A class counts in an image where it has a contour in the truth or in the prediction; where only
    one of them has, its F1 is 0. The score of an image is the mean over its classes. Ignored pixels
    belong to no contour and make none beside them.

    Args:
        num_classes: number of classes C, with ids 0 to C - 1.
        ignore_index: label of pixels that are not counted; None counts all.
        tolerance: largest distance of pixels that match, in the given unit.
        unit: "diagonal" (default), shares of the image's diagonal in pixels, or "pixels".

    Raises:
        ValueError: num_classes or tolerance is not positive, tolerance is more than a diagonal, or
            an unknown unit.
        TypeError: num_classes or ignore_index is no integer, or tolerance no number.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        *,
        tolerance: float = 0.0075,
        unit: Unit = "diagonal",
    ) -> None:
        super().__init__(num_classes, ignore_index)
        check_distance("tolerance", tolerance, unit)
        self.tolerance = tolerance
        self.unit: Unit = unit

    def _zeros(self) -> dict[str, Tensor]:
        return {
            "class_scores": torch.zeros(self.num_classes, dtype=torch.float64),
            "class_images": torch.zeros(self.num_classes, dtype=torch.int64),
            "image_scores": torch.zeros((), dtype=torch.float64),
            "images": torch.zeros((), dtype=torch.int64),
        }

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds the images of a batch.

        Args:
            prediction: predicted class ids, an integer tensor (H, W) or (N, H, W).
            label: true class ids, an integer tensor of the same shape.

        Raises:
            ValueError: the shapes differ or do not fit, or an id of a counted pixel is no class.
            TypeError: a tensor that is not of integers.
        """
        maps = class_maps(prediction, label, self.num_classes, self.ignore_index)
        size = maps[0].shape
        predicted, true = (contour_points(m, self.num_classes) for m in maps)
        distance = in_pixels(self.tolerance, self.unit, size)
        precision, predicted_pixels = self._matched(predicted, true, distance, size)
        recall, true_pixels = self._matched(true, predicted, distance, size)
        f1 = ratio(2 * precision * recall, precision + recall, absent=0)
        counts = predicted_pixels + true_pixels > 0
        per_image = counts.sum(1)
        self._add(
            {
                "class_scores": f1.sum(0),
                "class_images": counts.sum(0),
                "image_scores": ratio(f1.sum(1), per_image, absent=0).sum(),
                "images": (per_image > 0).sum(),
            }
        )

    def _matched(
        self, points: Tensor, others: Tensor, distance: float, size: torch.Size
    ) -> tuple[Tensor, Tensor]:
        """Returns the fraction of points near others and their number, by image and class."""
        number = size[0] * self.num_classes
        matching = points[:, near(points, others, distance, size)]
        total, matched = (torch.bincount(p[0], minlength=number) for p in (points, matching))
        shape = size[0], self.num_classes
        return ratio(matched, total, absent=0).view(shape), total.view(shape)

    def compute(self) -> dict[str, float]:
        """Returns {"boundary_f1": the mean over images}."""
        return {"boundary_f1": self.mean_f1()}

    def f1_scores(self) -> Tensor:
        """Returns the mean F1 of each class over its images, float64 (C,); nan if it has none."""
        return ratio(self.sums["class_scores"], self.sums["class_images"]).cpu()

    def mean_f1(self) -> float:
        """Returns the mean score over the images that have contours; nan if none has."""
        return ratio(self.sums["image_scores"], self.sums["images"]).item()
