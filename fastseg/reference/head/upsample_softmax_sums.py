"""Sums of the probabilities of upsampled logits, and their gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.formulas import is_counted
from fastseg.reference.head.upsample_argmax import upsample
from fastseg.reference.head.upsample_cross_entropy import upsample_backward


def upsample_softmax_sums(
    logits: Tensor, target: Tensor, align_corners: bool, ignore_index: int, squared: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums the softmax of upsampled logits over the pixels that are not ignored.

    Args:
        logits: (N, C, h, w).
        target: (N, H, W), the classes of pixels.
        align_corners: the option of ``F.interpolate``.
        ignore_index: the target of pixels that are ignored.
        squared: whether probabilities are squared before they are summed.

    Returns:
        For each image and class, (N, C), the sum of the class's probability over its own pixels,
        over all pixels, and the number of its pixels; and what the gradient keeps of each pixel,
        (N, H, W): here the log-sum-exp.
    """
    full = upsample(logits, target.shape[1:], align_corners)
    normalizer = full.logsumexp(1)
    p, hit = probabilities(full, target, normalizer, ignore_index)
    over_pixels = (2, 3)
    intersection = (p * hit).sum(over_pixels)
    total = (p.square() if squared else p).sum(over_pixels)
    return intersection, total, hit.sum(over_pixels), normalizer


def upsample_softmax_sums_backward(
    grad_intersection: Tensor,
    grad_probability: Tensor,
    logits: Tensor,
    target: Tensor,
    normalizer: Tensor,
    align_corners: bool,
    ignore_index: int,
    squared: bool,
) -> Tensor:
    """Computes the gradient of logits from those of the intersections and sums, (N, C)."""
    full = upsample(logits, target.shape[1:], align_corners)
    p, hit = probabilities(full, target, normalizer, ignore_index)
    of_sum = grad_probability[:, :, None, None]
    g = (2 * p * of_sum if squared else of_sum) + hit * grad_intersection[:, :, None, None]
    grad = p * (g - (p * g).sum(1, keepdim=True))
    return upsample_backward(grad, logits, align_corners)


def probabilities(
    full: Tensor, target: Tensor, normalizer: Tensor, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Returns the softmax and the one-hot target, (N, C, H, W); 0 where a pixel is ignored."""
    kept = is_counted(target, ignore_index)
    hit = F.one_hot(torch.where(kept, target, 0).long(), full.shape[1]).movedim(-1, 1)
    p = (full - normalizer[:, None]).exp()
    return torch.where(kept[:, None], p, 0), (hit * kept[:, None]).to(p)
