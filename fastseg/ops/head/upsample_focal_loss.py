"""The focal loss and the hardest pixels' cross-entropy of upsampled logits.

Both are made from the pixels' cross-entropies, in a few maps without classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastseg._core.autocast import autocast_dtype
from fastseg._core.formulas import is_counted
from fastseg._core.targets import check_class_factor, check_loss
from fastseg.ops.head.upsample_cross_entropy import pixel_losses

FOCAL = "fastseg::upsample_focal_loss"
OHEM = "fastseg::upsample_ohem_cross_entropy"


def upsample_focal_loss(
    logits: Tensor,
    target: Tensor,
    *,
    gamma: float = 2.0,
    alpha: Tensor | None = None,
    align_corners: bool = False,
    ignore_index: int = -100,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Tensor:
    """Computes the softmax focal loss of bilinearly upsampled logits, which are never stored.

    A pixel's loss is ``alpha[t] * (1 - p)^gamma * -log(p)`` with the probability p of its target t
    (Lin et al. 2017, with the softmax of several classes). Value and gradient are deterministic for
    any number of threads. The gradient of the gradient is plain PyTorch's. On a GPU it stands on
    the CUDA kernel of :func:`upsample_cross_entropy`, which has not run on one yet.

    Args:
        logits: (N, C, h, w); float32, float64, float16 or bfloat16.
        target: (N, H, W), the classes of pixels; int64, int32 or uint8.
        gamma: the exponent, at least 0; 0 is the cross-entropy.
        alpha: (C,), a factor for the pixels of each class, or None.
        align_corners: whether the corner pixels' centres are those of the logits, as in
            ``F.interpolate``.
        ignore_index: the target of pixels without a loss.
        reduction: "none" for the losses of pixels, (N, H, W); "sum"; or "mean", their sum divided
            by the number of pixels that are not ignored.

    Returns:
        The loss in the logits' dtype; under autocast in float32.

    Raises:
        TypeError: a tensor is none.
        RuntimeError: wrong shapes, dtypes or options; a target that is no class.
    """
    check_loss(FOCAL, logits, target, reduction, alpha=alpha)
    if not gamma >= 0:  # so is NaN
        raise RuntimeError(f"{FOCAL}: gamma must be at least 0, got {gamma}")
    losses = pixel_losses(logits, target, align_corners, None, ignore_index, 0.0, "none", None)
    # 1 - p, above 0: a power less than 1 has no slope there.
    rest = (-torch.expm1(-losses)).clamp_min(torch.finfo(losses.dtype).tiny)
    losses = losses * rest**gamma
    kept = is_counted(target, ignore_index)
    if alpha is not None:
        check_class_factor(FOCAL, "alpha", alpha, logits.shape[1])
        losses = losses * alpha.to(losses.dtype)[torch.where(kept, target, 0).long()]
    return _reduced(losses, kept, reduction, logits)


def upsample_ohem_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
    align_corners: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> Tensor:
    """Computes the cross-entropy of the hardest pixels of bilinearly upsampled logits.

    Pixels count whose target has a probability below the threshold, which is raised until they are
    at least min_kept times N: mmsegmentation's ``OHEMPixelSampler(thresh, min_kept)``. The others
    have the loss 0. The gradient of the gradient is plain PyTorch's. On a GPU it stands on the CUDA
    kernel of :func:`upsample_cross_entropy`, which has not run on one yet.

    Args:
        logits: (N, C, h, w); float32, float64, float16 or bfloat16.
        target: (N, H, W), the classes of pixels; int64, int32 or uint8.
        threshold: of the probability of a pixel's target.
        min_kept: the least number of pixels an image, on average over the batch.
        align_corners: whether the corner pixels' centres are those of the logits, as in
            ``F.interpolate``.
        weight: (C,), a factor for the pixels of each class, or None.
        ignore_index: the target of pixels without a loss.
        reduction: "none" for the losses of pixels, (N, H, W); "sum"; or "mean", their sum divided
            by the number of pixels that count, 0 where none of those that are not ignored does.
            mmsegmentation divides by that of all pixels.

    Returns:
        The loss in the logits' dtype; under autocast in float32.

    Raises:
        TypeError: a tensor is none.
        RuntimeError: wrong shapes, dtypes or options; a target that is no class.
    """
    check_loss(OHEM, logits, target, reduction, weight=weight)
    if min_kept < 0:
        raise RuntimeError(f"{OHEM}: min_kept must be at least 0, got {min_kept}")
    losses = pixel_losses(logits, target, align_corners, None, ignore_index, 0.0, "none", None)
    valid = is_counted(target, ignore_index)
    p = torch.where(valid, (-losses.detach()).exp(), torch.inf)
    # A NaN is as hard as any: the loss must show it.
    kept = valid & ~(p >= _raised(p, valid, threshold, min_kept * target.shape[0]))
    if weight is not None:
        check_class_factor(OHEM, "weight", weight, logits.shape[1])
        losses = losses * weight.to(losses.dtype)[torch.where(valid, target, 0).long()]
    # No pixel may be hard: the mean is then 0, and that of no pixel at all NaN, as elsewhere.
    counted = kept | (valid & ~kept.any())
    return _reduced(torch.where(kept, losses, 0), counted, reduction, logits)


def _raised(p: Tensor, valid: Tensor, threshold: float, count: int) -> Tensor:
    """Returns the threshold, or the probability number `count` where that is larger.

    Args:
        p: (N, H, W), infinite where a pixel is not valid.
        valid: (N, H, W).
        threshold: the least threshold.
        count: counts from 0; where fewer are valid the largest one is taken.
    """
    if p.numel() == 0:
        return p.new_tensor(threshold)
    largest = torch.where(valid, p, -torch.inf).amax()
    if count < p.numel():
        number = p.flatten().kthvalue(count + 1).values
        largest = torch.where(number.isinf(), largest, number)
    return largest.clamp_min(threshold)


def _reduced(losses: Tensor, kept: Tensor, reduction: str, logits: Tensor) -> Tensor:
    if reduction != "none":
        losses = _sum(losses)
    if reduction == "mean":
        losses = losses / kept.sum()
    return losses if autocast_dtype(logits) is not None else losses.to(logits.dtype)


def _sum(losses: Tensor) -> Tensor:
    """Sums rows one by one, and then their sums, so that no number of threads matters."""
    return losses.sum(2).sum(1).sum(0)
