"""Soft Dice and Jaccard losses of upsampled logits."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fastseg._core.autocast import autocast_dtype
from fastseg._core.library import call
from fastseg._core.targets import check_class_factor, check_loss
from fastseg.ops.head.upsample_softmax_sums import ops

NAME = "fastseg::upsample_dice_loss"
LEAST = 1e-7
"""The least denominator, and the least score of which a logarithm is taken."""


def upsample_dice_loss(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool = False,
    weight: Tensor | None = None,
    classes: Sequence[int] | None = None,
    ignore_index: int = -100,
    jaccard: bool = False,
    squared: bool = False,
    smooth_numerator: float = 1e-5,
    smooth_denominator: float = 1e-5,
    over_batch: bool = False,
    absent: Literal["counted", "zero"] = "counted",
    log: bool = False,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Tensor:
    """Computes the soft Dice loss of bilinearly upsampled logits, which are never stored.

    With the softmax p of the upsampled logits and the one-hot target t, a class's loss is
    ``1 - (2 I + smooth_numerator) / (P + T + smooth_denominator)``, where I sums ``p * t``, P sums
    p and T sums t over the pixels that are not ignored. The defaults are those of MONAI's
    ``DiceLoss(softmax=True, to_onehot_y=True)``. smp's ``DiceLoss("multiclass")``, and with
    ``jaccard=True`` its ``JaccardLoss``, are ``over_batch=True, absent="zero"`` with both smooth
    numbers twice its smooth. A training step keeps one number
    for each pixel. Value and gradient are deterministic for any number of threads. The gradient of
    the gradient is an error. On a GPU the sums are a CUDA kernel, which has not run on one yet.

    Args:
        logits: (N, C, h, w); float32, float64, float16 or bfloat16.
        target: (N, H, W), the classes of pixels; int64, int32 or uint8.
        align_corners: whether the corner pixels' centres are those of the logits, as in
            ``F.interpolate``.
        weight: a factor for the loss of each class that counts, or None.
        classes: the classes that count, for example ``range(1, C)`` without the background; None is
            all.
        ignore_index: the target of pixels that are ignored.
        jaccard: whether the denominator is ``2 (P + T - I)``, that of the Jaccard index.
        squared: whether P sums the squares of p.
        smooth_numerator: added to the numerator.
        smooth_denominator: added to the denominator, which is at least 1e-7.
        over_batch: whether the sums are over all images, instead of over each.
        absent: whether a class without a pixel is "counted" like others or has the loss "zero".
        log: whether the loss is the negative logarithm of the score, which is at least 1e-7.
        reduction: "none" for the losses (N, C), or (C,) over the batch; "mean" or "sum" of them.

    Returns:
        The loss in the logits' dtype; under autocast in float32.

    Raises:
        TypeError: a tensor is none, or classes are no integers.
        RuntimeError: wrong shapes, dtypes or options; a target that is no class.
    """
    check_loss(NAME, logits, target, reduction, weight=weight)
    if absent not in ("counted", "zero"):
        raise RuntimeError(f'{NAME}: absent must be "counted" or "zero", got "{absent}"')
    intersection, probability, count, _ = call(
        ops.upsample_softmax_sums.default, (logits, target), align_corners, ignore_index, squared
    )
    sums = torch.stack([intersection, probability, count])
    if over_batch:
        sums = sums.sum(1)
    if classes is not None:
        sums = sums[..., _checked(classes, logits.shape[1])]
    loss = _losses(*sums, jaccard, smooth_numerator, smooth_denominator, log)
    if absent == "zero":
        loss = torch.where(sums[2] > 0, loss, 0)
    if weight is not None:
        check_class_factor(NAME, "weight", weight, sums.shape[-1])
        loss = loss * weight.to(loss.dtype)
    if reduction != "none":
        loss = loss.mean() if reduction == "mean" else loss.sum()
    return loss if autocast_dtype(logits) is not None else loss.to(logits.dtype)


def _checked(classes: Sequence[int], count: int) -> list[int]:
    try:
        given = list(classes)
        chosen = [operator.index(k) for k in given]
    except TypeError:
        raise TypeError(f"{NAME}: classes must be integers, got {classes!r}") from None
    if any(isinstance(k, bool) for k in given):  # torch would take a list of them for a mask
        raise TypeError(f"{NAME}: classes must be integers, not a mask, got {classes!r}")
    if not chosen or not all(0 <= k < count for k in chosen):
        raise RuntimeError(f"{NAME}: classes must be some of 0 to {count - 1}, got {chosen}")
    return chosen


def _losses(intersection, probability, count, jaccard, smooth_numerator, smooth_denominator, log):
    """Returns the losses of classes from their sums."""
    denominator = probability + count
    if jaccard:
        denominator = 2 * (denominator - intersection)
    denominator = (denominator + smooth_denominator).clamp_min(LEAST)
    score = (2 * intersection + smooth_numerator) / denominator
    return -score.clamp_min(LEAST).log() if log else 1 - score
