"""Atrous spatial pyramid pooling in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.formulas import compute_dtype, conv2d_epilogue


def aspp(
    x: Tensor,
    weights: Sequence[Tensor],
    scales: Sequence[Tensor | None],
    shifts: Sequence[Tensor | None],
    dilations: Sequence[int],
    project_weight: Tensor | None,
    project_scale: Tensor | None,
    project_shift: Tensor | None,
    pool_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """Computes parallel atrous convolutions, concatenated and projected, or summed.

    Let ``b_i = act(conv2d(x, weights[i]) * scales[i] + shifts[i])`` and b their concatenation. The
    result is ``act((conv2d(b, project_weight) + pool_bias) * project_scale + project_shift)``. The
    pooled branch is constant over a map, so that its share is pool_bias, one vector per image.
    Without a projection the result is ``sum_i b_i``. It is rounded to x's dtype once.

    Args:
        x: (N, Ci, H, W).
        weights: a weight (C_i, Ci, kh, kw) per branch; padding keeps the size.
        scales: a scale (C_i,) or None per branch.
        shifts: a shift (C_i,) or None per branch.
        dilations: a rate per branch.
        project_weight: (Co, sum C_i, 1, 1), or None for the sum.
        project_scale: (Co,) or None.
        project_shift: (Co,) or None.
        pool_bias: (N, Co) or None.
        activation: a name in fastseg._core.formulas.ACTIVATION, for branches and projection.
    """
    wide = compute_dtype(x.dtype)
    branches = []
    for weight, scale, shift, dilation in zip(weights, scales, shifts, dilations, strict=True):
        padding = [dilation * (k // 2) for k in weight.shape[2:]]
        y = F.conv2d(x.to(wide), weight.to(wide), None, 1, padding, dilation)
        branches.append(conv2d_epilogue(y, None, scale, shift, None, activation))
    if project_weight is None:
        return sum(branches).to(x.dtype)
    y = F.conv2d(torch.cat(branches, 1), project_weight.to(wide))
    if pool_bias is not None:
        y = y + pool_bias.to(wide)[:, :, None, None]
    return conv2d_epilogue(y, None, project_scale, project_shift, None, activation).to(x.dtype)
