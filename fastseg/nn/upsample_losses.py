"""Losses of bilinearly upsampled logits as modules."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg.ops import upsample_cross_entropy, upsample_dice_loss, upsample_focal_loss


class UpsampleCrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """torch.nn.CrossEntropyLoss of upsampled logits, :func:`fastseg.upsample_cross_entropy`.

    The arguments are torch's, and align_corners. Targets are classes, not probabilities.
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        align_corners: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.align_corners = align_corners

    def forward(self, logits: Tensor, target: Tensor, weight_map: Tensor | None = None) -> Tensor:
        """Computes the loss of logits (N, C, h, w) with targets (N, H, W)."""
        return upsample_cross_entropy(
            logits,
            target,
            align_corners=self.align_corners,
            weight=self.weight,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            reduction=self.reduction,
            weight_map=weight_map,
        )


class UpsampleFocalLoss(torch.nn.Module):
    """:func:`fastseg.upsample_focal_loss` as a module; alpha is a buffer outside the state_dict."""

    alpha: Tensor | None

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("alpha", alpha, persistent=False)
        self.gamma = gamma
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.align_corners = align_corners

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of logits (N, C, h, w) with targets (N, H, W)."""
        return upsample_focal_loss(
            logits,
            target,
            gamma=self.gamma,
            alpha=self.alpha,
            align_corners=self.align_corners,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
        )


class UpsampleDiceLoss(torch.nn.Module):
    """:func:`fastseg.upsample_dice_loss` as a module; weight is a buffer outside the state_dict."""

    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | None = None,
        classes: Sequence[int] | None = None,
        ignore_index: int = -100,
        jaccard: bool = False,
        squared: bool = False,
        smooth_numerator: float = 1e-5,
        smooth_denominator: float = 1e-5,
        over_batch: bool = False,
        absent: str = "counted",
        log: bool = False,
        reduction: str = "mean",
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.options = {
            "classes": classes,
            "ignore_index": ignore_index,
            "jaccard": jaccard,
            "squared": squared,
            "smooth_numerator": smooth_numerator,
            "smooth_denominator": smooth_denominator,
            "over_batch": over_batch,
            "absent": absent,
            "log": log,
            "reduction": reduction,
            "align_corners": align_corners,
        }

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of logits (N, C, h, w) with targets (N, H, W)."""
        return upsample_dice_loss(logits, target, weight=self.weight, **self.options)
