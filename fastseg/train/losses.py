"""Losses of a training run by their names, and sums of them."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from fastseg._core.formulas import is_counted
from fastseg.ops import (
    upsample_cross_entropy,
    upsample_dice_loss,
    upsample_focal_loss,
    upsample_ohem_cross_entropy,
)
from fastseg.train.processes import global_sum, is_distributed, world_size
from fastseg.train.selection import raised_threshold

NAMES = ("ce", "dice", "focal", "jaccard", "ohem")
"""Names of losses."""

HARD, LEAST_KEPT = 0.7, 100_000
"""OHEM's threshold of the target's probability, and its least number of pixels a picture."""

TERM = re.compile(rf"(?:(?P<factor>\d+(?:\.\d+)?)\*)?(?P<name>{'|'.join(NAMES)})")


def parse_loss(text: str) -> dict[str, float]:
    """Returns the factor of each loss of a sum such as "ce+dice" or "ce+0.5*dice".

    Raises:
        ValueError: a loss that is none of NAMES, or comes twice.
    """
    factors: dict[str, float] = {}
    for part in text.replace(" ", "").split("+"):
        match = TERM.fullmatch(part)
        if match is None or match["name"] in factors:
            raise ValueError(
                f"loss must be a sum of different {', '.join(NAMES)}, such as ce+0.5*dice, "
                f"got {text!r}"
            )
        factors[match["name"]] = float(match["factor"] or 1)
    return factors


class Loss(nn.Module):
    """A sum of losses of logits that are upsampled to the target.

    Means are over all pixels, or pictures, of a batch, which may be computed in several parts and
    by several processes: the losses of the parts add up to the batch's, and the gradients that
    DistributedDataParallel averages are those of one process with the whole batch. OHEM alone
    chooses its pixels in each part, among those of all processes. A batch whose pixels are all
    ignored has the loss 0.

    Args:
        text: the sum, see :func:`parse_loss`.
        class_weights: float32 (C,), for cross-entropy, focal loss and OHEM; None for equal ones.
        ignore_index: label of pixels that do not count.
        align_corners: how logits are upsampled.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        text: str,
        class_weights: Tensor | None,
        ignore_index: int,
        align_corners: bool = False,
    ) -> None:
        super().__init__()
        self.factors = parse_loss(text)
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.ignore_index = ignore_index
        self.common = {"ignore_index": ignore_index, "align_corners": align_corners}
        self.whole: dict[str, Tensor] = {}

    def measure(self, target: Tensor) -> None:
        """Counts what the means of the next batch are over.

        Args:
            target: this process's labels of the batch, (N, H, W).
        """
        counted = is_counted(target, self.ignore_index)
        weight = pixels = counted.sum().float()
        if self.class_weights is not None:
            weight = (self.class_weights[torch.where(counted, target, 0)] * counted).sum()
        pictures = torch.full_like(pixels, len(target))
        sums = global_sum(torch.stack((weight, pixels, pictures)))
        self.whole = dict(zip(("weight", "pixels", "pictures"), sums.clamp_min(1e-12), strict=True))

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Computes the loss of a part of the batch: logits (N, C, h, w), targets (N, H, W)."""
        total = logits.new_zeros((), dtype=torch.float32)
        for name, factor in self.factors.items():
            summed, over = getattr(self, f"_{name}")(logits, target)
            total = total + factor * summed / self.whole[over]
        return total * world_size()

    def _ce(self, logits: Tensor, target: Tensor) -> tuple[Tensor, str]:
        summed = upsample_cross_entropy(
            logits, target, weight=self.class_weights, reduction="sum", **self.common
        )
        return summed, "weight"

    def _focal(self, logits: Tensor, target: Tensor) -> tuple[Tensor, str]:
        summed = upsample_focal_loss(
            logits, target, alpha=self.class_weights, reduction="sum", **self.common
        )
        return summed, "pixels"

    def _ohem(self, logits: Tensor, target: Tensor) -> tuple[Tensor, str]:
        if is_distributed():
            return self._ohem_of_all(logits, target)
        if not is_counted(target, self.ignore_index).any():
            return logits.sum() * 0, "pictures"
        mean = upsample_ohem_cross_entropy(
            logits,
            target,
            threshold=HARD,
            min_kept=LEAST_KEPT,
            weight=self.class_weights,
            **self.common,
        )
        return mean * len(target), "pictures"

    def _ohem_of_all(self, logits: Tensor, target: Tensor) -> tuple[Tensor, str]:
        """Computes this process's share of OHEM over the pixels of all processes."""
        with torch.no_grad():
            losses = upsample_cross_entropy(logits, target, reduction="none", **self.common)
            counted = is_counted(target, self.ignore_index)
            p = torch.where(counted, (-losses.float()).exp(), torch.inf)
        pictures = int(global_sum(counted.new_tensor(len(target), dtype=torch.int64)))
        least = LEAST_KEPT * pictures
        threshold = raised_threshold(p, counted, HARD, least)
        kept = global_sum((p < threshold).sum()).clamp_min(1)
        summed = upsample_ohem_cross_entropy(
            logits,
            target,
            threshold=threshold,
            min_kept=0,
            weight=self.class_weights,
            reduction="sum",
            **self.common,
        )
        return summed / kept * pictures, "pictures"

    def _dice(self, logits: Tensor, target: Tensor) -> tuple[Tensor, str]:
        return upsample_dice_loss(logits, target, **self.common) * len(target), "pictures"

    def _jaccard(self, logits: Tensor, target: Tensor) -> tuple[Tensor, str]:
        mean = upsample_dice_loss(logits, target, jaccard=True, **self.common)
        return mean * len(target), "pictures"
