"""The exact Euclidean distance transform, one axis after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def distance_transform(
    mask: Tensor, spacing: Sequence[float], squared: bool = False, in_float64: bool = False
) -> Tensor:
    """Computes :func:`fastseg.distance_transform` of the last len(spacing) dimensions.

    A squared distance is a sum over the axes, so its minimum over all zeros is taken along one
    axis after another. Everything is computed in float64.

    Args:
        mask: (..., [[D,] H,] W); zeros are what distances lead to.
        spacing: distance between neighbours along each of the last dimensions.
        squared: whether distances stay squared.
        in_float64: whether the output is float64 instead of float32.
    """
    d2 = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    d2[mask != 0] = torch.inf
    for dim, step in enumerate(spacing, -len(spacing)):
        d2 = lower_envelope(d2.movedim(dim, -1), step).movedim(-1, dim)
    out = d2 if squared else d2.sqrt()
    return out.to(torch.float64 if in_float64 else torch.float32).contiguous()


def lower_envelope(f: Tensor, step: float) -> Tensor:
    """Returns ``min_j (step (i - j))^2 + f_j`` along the last dimension."""
    i = torch.arange(f.shape[-1], dtype=f.dtype, device=f.device)
    lowest = torch.full_like(f, torch.inf)
    for j in range(f.shape[-1]):
        lowest = torch.minimum(lowest, (step * (i - j)) ** 2 + f[..., j : j + 1])
    return lowest
