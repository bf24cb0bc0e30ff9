"""The cross-entropy of upsampled logits, and its gradient."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.formulas import is_counted
from fastseg.reference.head.upsample_argmax import upsample


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    weight: Tensor | None,
    weight_map: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes the loss of :func:`fastseg.upsample_cross_entropy`.

    Returns:
        The loss, the sum of the weights of the pixels that are not ignored, and what the gradient
        keeps of each pixel, (N, H, W): here the log-sum-exp.
    """
    full = upsample(logits, target.shape[1:], align_corners)
    weights = pixel_weights(full, target, weight, weight_map, ignore_index)
    loss = F.cross_entropy(
        full,
        target.long(),
        weight,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="none",
    )
    if weight_map is not None:
        loss = torch.where(is_counted(target, ignore_index), loss * weight_map, loss)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "mean":
        loss = loss / weights.sum()
    return loss, weights.sum(), full.logsumexp(1)


def upsample_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    target: Tensor,
    normalizer: Tensor,
    weight: Tensor | None,
    weight_map: Tensor | None,
    align_corners: bool,
    ignore_index: int,
    label_smoothing: float,
) -> Tensor:
    """Computes the gradient of logits from that of the pixels' losses, (N, H, W).

    A pixel's loss has the gradient ``map * ((1 - e) * weight[t] * (p - onehot(t)) + e / C *
    (p * weight.sum() - weight))`` with the probabilities p and the label smoothing e.
    """
    full = upsample(logits, target.shape[1:], align_corners)
    classes = full.shape[1]
    if weight is None:
        weight = full.new_ones(classes)
    kept = is_counted(target, ignore_index)
    targets = torch.where(kept, target, 0).long()
    p = (full - normalizer[:, None]).exp()
    hit = F.one_hot(targets, classes).movedim(-1, 1).to(p)
    nll = weight[targets][:, None] * (p - hit)
    smooth = p * weight.sum() - weight[:, None, None]
    scale = grad if weight_map is None else grad * weight_map
    g = scale[:, None] * ((1 - label_smoothing) * nll + label_smoothing / classes * smooth)
    g = torch.where(kept[:, None], g, 0)
    return upsample_backward(g, logits, align_corners)


def pixel_weights(
    full: Tensor,
    target: Tensor,
    weight: Tensor | None,
    weight_map: Tensor | None,
    ignore_index: int,
) -> Tensor:
    """Returns each pixel's weight, (N, H, W); that of an ignored pixel is 0."""
    kept = is_counted(target, ignore_index)
    if weight is None:
        weight = full.new_ones(full.shape[1])
    weights = weight[torch.where(kept, target, 0).long()]
    if weight_map is not None:
        weights = weights * weight_map
    return torch.where(kept, weights, 0)


def upsample_backward(grad: Tensor, logits: Tensor, align_corners: bool) -> Tensor:
    """Returns the gradient of logits from that of the upsampled ones, in the logits' layout."""
    if grad.shape[0] == 0:
        return torch.zeros_like(logits)
    small = torch.ops.aten.upsample_bilinear2d_backward(
        grad.contiguous(), list(grad.shape[2:]), list(logits.shape), align_corners
    )
    layout = torch._prims_common.suggest_memory_format(logits)
    return small.to(logits.dtype).contiguous(memory_format=layout)
