"""The op fastseg.upsample_confusion_matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.logits import check_logits
from fastseg._core.tensor_checks import STRIDED, check_dense, check_device, check_tensors
from fastseg.ops.head.confusion_matrix import IDS, MOST_CLASSES


def upsample_confusion_matrix(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool = False,
    ignore_index: int | None = None,
) -> Tensor:
    """Counts how often each class is predicted as each class, from small logits.

    The logits are upsampled bilinearly to the target's size and reduced to classes a few rows at a
    time: neither logits of full size nor a class map is stored. It is
    ``fastseg.confusion_matrix(fastseg.upsample_argmax(logits, target.shape[1:]), target, C)``. On a
    GPU it is a CUDA kernel, which has not run on one yet.

    Args:
        logits: (N, C, h, w); float32, float64, float16 or bfloat16.
        target: true class ids (N, H, W); uint8, int8, int16, int32, int64 or bool.
        align_corners: whether the corner pixels' centres are those of the logits, as in
            ``F.interpolate``.
        ignore_index: id in target of pixels that are not counted; None (default) counts all.

    Returns:
        int64 (C, C): row i, column j is the number of pixels of true class i predicted as j.

    Raises:
        TypeError: logits or target is no tensor.
        RuntimeError: wrong dtypes, shapes or devices, more than 32768 classes; an id of a counted
            pixel that is not 0 to C - 1 (on a GPU a device-side assert).
    """
    for t in (logits, target):
        if type(t) is not Tensor or t.layout is not STRIDED:
            check_tensors("fastseg::upsample_confusion_matrix", logits=logits, target=target)
            break
    tensors = (logits.detach(), target)
    return call(_upsample_confusion_matrix, tensors, align_corners, ignore_index)


def _check(logits, target):
    op = "fastseg::upsample_confusion_matrix"
    check_logits(op, logits)
    check_dense(op, "target", target)
    torch._check(
        target.dtype in IDS,
        lambda: (
            f"{op}: target must hold integer class ids (uint8, int8, int16, int32, int64 or bool),"
            f" got {target.dtype}"
        ),
    )
    torch._check(
        target.dim() == 3 and target.shape[0] == logits.shape[0],
        lambda: (
            f"{op}: target must have the shape (N, H, W) with N = {logits.shape[0]}, got"
            f" {tuple(target.shape)}"
        ),
    )
    check_device(op, "target", target, "logits", logits)
    torch._check(
        logits.shape[1] <= MOST_CLASSES,
        lambda: f"{op}: logits must have at most {MOST_CLASSES} classes, got {logits.shape[1]}",
    )


def _fake(logits, target, align_corners, ignore_index=None):
    _check(logits, target)
    return target.new_empty((logits.shape[1], logits.shape[1]), dtype=torch.int64)


def _reference(logits, target, align_corners, ignore_index=None):
    _check(logits, target)
    return reference.upsample_confusion_matrix(logits, target, align_corners, ignore_index)


_upsample_confusion_matrix = define(
    "upsample_confusion_matrix(Tensor logits, Tensor target, bool align_corners,"
    " int? ignore_index=None) -> Tensor",
    reference=_reference,
    fake=_fake,
)
