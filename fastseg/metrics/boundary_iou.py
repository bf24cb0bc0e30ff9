"""IoU of the pixels near contours."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg.metrics.boundaries import (
    VOID,
    Unit,
    check_distance,
    class_maps,
    in_pixels,
    inner_band,
)
from fastseg.metrics.metric import Metric, ratio
from fastseg.ops.head.confusion_matrix import confusion_matrix


class BoundaryIoU(Metric):
    """Boundary IoU: the IoU of those pixels of each class that lie near its contour.

    The band of a class is what ``distance`` erosions with a 3x3 square take from it: its pixels
    with another class, or the outside of the image, within that distance by rows and columns. With
    G and P the bands of the truth and of the prediction the score is ``|G and P| / |G or P|``
    (Cheng, Girshick, Dollár, Berg, Kirillov, CVPR 2021), summed over all images before the
    division. The distance is rounded to whole pixels, at least 1, as the authors' code does.
    Ignored pixels belong to no band, and an erosion takes them for their surroundings.

    Args:
        num_classes: number of classes C, with ids 0 to C - 1.
        ignore_index: label of pixels that are not counted; None counts all.
        distance: width of the band, in the given unit.
        unit: "diagonal" (default), shares of the image's diagonal in pixels, or "pixels".

    Raises:
        ValueError: num_classes or distance is not positive, distance is more than a diagonal, or
            an unknown unit.
        TypeError: num_classes or ignore_index is no integer, or distance no number.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = None,
        *,
        distance: float = 0.02,
        unit: Unit = "diagonal",
    ) -> None:
        super().__init__(num_classes, ignore_index)
        check_distance("distance", distance, unit)
        self.distance = distance
        self.unit: Unit = unit

    def _zeros(self) -> dict[str, Tensor]:
        names = ("intersection", "union")
        return {name: torch.zeros(self.num_classes, dtype=torch.int64) for name in names}

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
        distance = max(1, round(in_pixels(self.distance, self.unit, true.shape)))
        near_predicted, near_true = (inner_band(m, distance) for m in (predicted, true))

        def counts(band: Tensor) -> Tensor:
            labels = torch.where(band, true, VOID)
            return confusion_matrix(predicted, labels, self.num_classes, ignore_index=VOID)

        intersection = counts(near_predicted & near_true).diagonal()
        sizes = counts(near_predicted).sum(0) + counts(near_true).sum(1)
        self._add({"intersection": intersection, "union": sizes - intersection})

    def compute(self) -> dict[str, float]:
        """Returns {"boundary_iou": the mean over classes, absent ones left out}."""
        return {"boundary_iou": self.mean_iou()}

    def ious(self, absent: float | None = None) -> Tensor:
        """Returns the boundary IoU of each class, float64 (C,).

        Args:
            absent: score of a class without a pixel in any band; None is nan, which means leave
                out.
        """
        return ratio(self.sums["intersection"], self.sums["union"], absent).cpu()

    def mean_iou(self, absent: float | None = None) -> float:
        """Returns the mean boundary IoU over the classes."""
        return self.ious(absent).nanmean().item()
