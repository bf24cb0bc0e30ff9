"""Scores of a network, or of masks in a folder, over a data set, and by picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastseg._core.json_values import without_nan
from fastseg.data.channel_image import Picture
from fastseg.data.classes import IGNORE, Classes
from fastseg.data.folder import PictureFolder
from fastseg.data.image import ImageError, read_labels
from fastseg.metrics import BoundaryF1, BoundaryIoU, ConfusionMatrix, TrimapCurve
from fastseg.segment.predictor import Predictor

Labelled = tuple[int, Picture, np.ndarray, np.ndarray]
"""A picture's index, the picture, its true classes and the predicted ones, uint8 (H, W)."""


@dataclass(frozen=True)
class PictureScore:
    """The scores of one picture.

    Attributes:
        index: its place in the data set.
        name: its name.
        miou: mean IoU over the classes that it has; nan where nothing counts.
        pixel_accuracy: share of right pixels.
    """

    index: int
    name: str
    miou: float
    pixel_accuracy: float


@dataclass
class Scores:
    """All metrics over a data set.

    Attributes:
        classes: the classes.
        matrix: the confusion matrix.
        boundaries: the metrics of boundaries.
        pictures: the scores of each picture.
    """

    classes: Classes
    matrix: ConfusionMatrix = field(init=False)
    boundaries: tuple[BoundaryF1, BoundaryIoU, TrimapCurve] = field(init=False)
    pictures: list[PictureScore] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Begins with no picture."""
        count = len(self.classes)
        self.matrix = ConfusionMatrix(count, IGNORE)
        kinds = (BoundaryF1, BoundaryIoU, TrimapCurve)
        self.boundaries = tuple(kind(count, IGNORE) for kind in kinds)

    def add(self, index: int, name: str, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Adds a picture.

        Args:
            index: its place in the data set.
            name: its name.
            truth: true classes or IGNORE, uint8 (H, W).
            predicted: predicted classes, uint8 (H, W).
        """
        maps = torch.from_numpy(predicted)[None], torch.from_numpy(truth.copy())[None]
        own = ConfusionMatrix(len(self.classes), IGNORE)
        own.update(*maps)
        self.matrix.merge(own)
        for metric in self.boundaries:
            metric.update(*maps)
        score = PictureScore(index, name, own.mean_iou(), own.pixel_accuracy())
        self.pictures.append(score)

    def ranked(self) -> list[PictureScore]:
        """Returns the pictures whose pixels count, worst first."""
        counted = [p for p in self.pictures if not math.isnan(p.miou)]
        return sorted(counted, key=lambda p: (p.miou, p.name))

    def by_class(self) -> dict[str, dict[str, float]]:
        """Returns the scores of each class by its name."""
        matrix = self.matrix
        columns = {
            "iou": matrix.ious(),
            "dice": matrix.dice_scores(),
            "precision": matrix.precisions(),
            "recall": matrix.recalls(),
        }
        labelled = matrix.counts.sum(1).tolist()
        return {
            name: {"pixels": labelled[k], **{c: float(v[k]) for c, v in columns.items()}}
            for k, name in enumerate(self.classes.names)
        }

    def summary(self) -> dict[str, float]:
        """Returns the scores over all pictures by name; "miou" is what training keeps the best of.

        The mean IoU is also there as "mean_iou", its name in ``fastseg.metrics``.
        """
        found = {"miou": self.matrix.mean_iou(), **self.matrix.compute()}
        for metric in self.boundaries[:2]:
            found |= metric.compute()
        return found

    def as_json(self) -> dict[str, Any]:
        """Returns everything as numbers and texts; None stands for nan."""
        return without_nan(
            {
                **self.summary(),
                "trimap": self.boundaries[2].compute(),
                "classes": self.by_class(),
                "confusion_matrix": self.matrix.counts.tolist(),
                "pictures": [
                    {"name": p.name, "miou": p.miou, "pixel_accuracy": p.pixel_accuracy}
                    for p in self.pictures
                ],
            }
        )


def predicted_by(
    predictor: Predictor, dataset: PictureFolder, chosen: Sequence[int] | None = None
) -> Iterator[Labelled]:
    """Yields a data set's pictures, all or those chosen, with true and predicted classes."""
    for index in range(len(dataset)) if chosen is None else chosen:
        image, label = dataset.load(index)
        (predicted,) = predictor.labels([image])
        yield index, image, np.asarray(label), predicted


def predicted_in(
    folder: Path, dataset: PictureFolder, chosen: Sequence[int] | None = None
) -> Iterator[Labelled]:
    """Yields pictures of a data set with their true classes and those of masks in a folder.

    Args:
        folder: masks of class ids, PNGs with the pictures' names.
        dataset: the pictures and their true masks.
        chosen: the pictures' places; None is all.

    Raises:
        ImageError: a mask is missing, cannot be read, has another size or an id that is no class.
    """
    for index in range(len(dataset)) if chosen is None else chosen:
        image, label = dataset.load(index)
        path = folder / f"{dataset.pairs[index].name}.png"
        ids = read_labels(path).ids
        if ids.shape != (image.height, image.width):
            raise ImageError(
                f"{path}: is {ids.shape[1]}x{ids.shape[0]}, its picture "
                f"{image.width}x{image.height}"
            )
        truth = np.asarray(label)
        counted = truth != IGNORE
        highest = int(ids[counted].max(initial=0))
        if highest >= len(dataset.classes):
            raise ImageError(f"{path}: holds id {highest}, of {len(dataset.classes)} classes")
        yield index, image, truth, np.where(counted, ids, 0).astype(np.uint8)


def score(
    labelled: Iterator[Labelled],
    dataset: PictureFolder,
    on_picture: Callable[[], object] = lambda: None,
) -> Scores:
    """Scores the pictures of a data set.

    Args:
        labelled: the pictures with their true and predicted classes.
        dataset: the data set.
        on_picture: called after each picture.
    """
    scores = Scores(dataset.classes)
    for index, _, truth, predicted in labelled:
        scores.add(index, dataset.pairs[index].name, truth, predicted)
        on_picture()
    return scores


def shown_pictures(scores: Scores, count: int) -> tuple[Sequence[PictureScore], ...]:
    """Returns the worst and the best pictures, at most `count` of each, none in both."""
    ranked = scores.ranked()
    worst = ranked[: min(count, -(-len(ranked) // 2))]
    best = ranked[len(worst) :][-count:]
    return worst, best[::-1]
