"""The op fastseg.confusion_matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.tensor_checks import STRIDED, check_dense, check_device, check_tensors

IDS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)
"""Dtypes of class ids."""

MOST_CLASSES = 32768
"""Largest number of classes; the counts of more would take more than 8 GiB."""


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, *, ignore_index: int | None = None
) -> Tensor:
    """Counts how often each class is predicted as each class.

    Both maps are read once, wherever their elements lie: sliced, permuted and expanded maps are not
    copied. Counting is exact and the same for any number of threads. Nothing waits for a GPU. The
    scores of :mod:`fastseg.metrics` follow from the counts.

    Args:
        prediction: predicted class ids, any shape; uint8, int8, int16, int32, int64 or bool.
        target: true class ids of the shape of prediction, of any of these dtypes.
        num_classes: number of classes C, 1 to 32768, with ids 0 to C - 1.
        ignore_index: id in target of pixels that are not counted, whatever is predicted there;
            None (default) counts all. It may be any integer, one of the classes' ids too.

    Returns:
        int64 (C, C): row i, column j is the number of pixels of true class i predicted as j.

    Raises:
        TypeError: prediction or target is no tensor.
        RuntimeError: wrong dtypes, shapes, devices or num_classes; an id of a counted pixel that is
            not 0 to C - 1 (on a GPU a device-side assert that names the op and the argument).
    """
    for t in (prediction, target):
        if type(t) is not Tensor or t.layout is not STRIDED:
            check_tensors("fastseg::confusion_matrix", prediction=prediction, target=target)
            break
    return call(_confusion_matrix, (prediction, target), num_classes, ignore_index)


def _check(prediction, target, num_classes):
    op = "fastseg::confusion_matrix"
    for name, ids in (("prediction", prediction), ("target", target)):
        check_dense(op, name, ids)
        torch._check(
            ids.dtype in IDS,
            lambda name=name, ids=ids: (
                f"{op}: {name} must hold integer class ids (uint8, int8, int16, int32, int64 or"
                f" bool), got {ids.dtype}"
            ),
        )
    torch._check(
        prediction.shape == target.shape,
        lambda: (
            f"{op}: prediction and target must have one shape, got {tuple(prediction.shape)} and"
            f" {tuple(target.shape)}"
        ),
    )
    check_device(op, "target", target, "prediction", prediction)
    torch._check(
        1 <= num_classes <= MOST_CLASSES,
        lambda: f"{op}: num_classes must be 1 to {MOST_CLASSES}, got {num_classes}",
    )


def _fake(prediction, target, num_classes, ignore_index=None):
    _check(prediction, target, num_classes)
    return target.new_empty((num_classes, num_classes), dtype=torch.int64)


def _reference(prediction, target, num_classes, ignore_index=None):
    _check(prediction, target, num_classes)
    return reference.confusion_matrix(prediction, target, num_classes, ignore_index)


define(
    "confusion_matrix(Tensor prediction, Tensor target, int num_classes, int? ignore_index=None)"
    " -> Tensor",
    reference=_reference,
    fake=_fake,
)
_confusion_matrix = torch.ops.fastseg.confusion_matrix.default
