"""The class map of upsampled logits, and how sure it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.formulas import compute_dtype


def upsample(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Returns logits of full size, (N, C, H, W), in float32 or float64."""
    logits = logits.to(compute_dtype(logits.dtype))
    return F.interpolate(logits, list(size), mode="bilinear", align_corners=align_corners)


def upsample_argmax(
    logits: Tensor, size: Sequence[int], align_corners: bool, dtype: torch.dtype
) -> Tensor:
    """Computes :func:`fastseg.upsample_argmax`: the first of the largest, NaN above all."""
    return upsample(logits, size, align_corners).argmax(1).to(dtype)


def upsample_argmax_confidence(
    logits: Tensor, size: Sequence[int], align_corners: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Computes the same and the softmax of the class that was chosen."""
    full = upsample(logits, size, align_corners)
    classes = full.argmax(1)
    confidence = full.softmax(1).gather(1, classes[:, None])[:, 0]
    return classes.to(dtype), confidence
