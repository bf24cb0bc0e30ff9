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
    """Parallel atrous convolutions, concatenated and projected, or summed.

    With ``b_i = act(conv2d(x, weights[i]) * scales[i] + shifts[i])`` and b their concatenation:
    ``act((conv2d(b, project_weight) + pool_bias) * project_scale + project_shift)``, where the
    pooling branch, constant over a map, has become pool_bias, one vector an image; without a
    projection ``sum_i b_i``. Rounded to x's dtype once.

    Args:
        x: (N, Ci, H, W).
        weights: of each branch, (C_i, Ci, kh, kw); padding keeps the size.
        scales: of each branch, (C_i,) or None.
        shifts: of each branch, (C_i,) or None.
        dilations: of each branch.
        project_weight: (Co, sum C_i, 1, 1), or None for the sum.
        project_scale: (Co,) or None.
        project_shift: (Co,) or None.
        pool_bias: (N, Co) or None.
        activation: of the branches and of the projection, as in
            :func:`fastseg.reference.atrous_conv2d`.
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
