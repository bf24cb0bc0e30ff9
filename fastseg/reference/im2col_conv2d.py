"""Convolution with weights packed for a matrix product."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fastseg.reference.winograd_conv2d import PANEL


def pack_im2col(weight: Tensor) -> Tensor:
    """(panels, kh * kw * Ci, 16) of a weight (Co, Ci, kh, kw), float32; lanes left over are 0."""
    rows = weight.float().permute(2, 3, 1, 0).flatten(0, 2)  # (kh * kw * Ci, Co)
    rows = F.pad(rows, (0, -rows.shape[1] % PANEL))
    return rows.unflatten(1, (-1, PANEL)).transpose(0, 1).contiguous()


def im2col_conv2d(
    x: Tensor,
    weight: Tensor,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """``y[o, p] = sum_{t, i} weight[o // 16, t Ci + i, o % 16] x[i, p s - pad + t dilation]``."""
    rows = weight.transpose(0, 1).flatten(1)[:, :out_channels]  # (kh * kw * Ci, Co)
    taps = rows.unflatten(0, (*kernel_size, x.shape[1])).permute(3, 2, 0, 1)
    return F.conv2d(x, taps.contiguous(), None, stride, padding, dilation)
