"""A 1x1 convolution of a contiguous map on the CPU whose output is in channels_last.

It is one matrix product, with the map's transpose. Neither map is converted, which would take a
third of the product's time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.formulas import ACTIVATION_IN_PLACE
from fastseg._core.plain_tensors import plain_on_cpu
from fastseg.ops.conv.cpu_costs import POINTWISE_CHANNELS, POINTWISE_PIXELS
from fastseg.ops.conv.cpu_onednn import fold, is_finite
from fastseg.ops.conv.prepared_weights import prepared


def suits(x: Tensor, weight: Tensor, *vectors: Tensor | None) -> bool:
    """Whether :func:`pointwise_conv2d` takes these tensors, and is the fastest for them.

    Args:
        x: (N, Ci, H, W).
        weight: (Co, Ci, 1, 1).
        vectors: all other tensors of the call.
    """
    return (
        x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= POINTWISE_CHANNELS
        and len(x) > 0
        and x.shape[2] * x.shape[3] >= POINTWISE_PIXELS
        and x.is_contiguous()
        and not x.is_contiguous(memory_format=torch.channels_last)
        and plain_on_cpu((x, weight, *vectors))
    )


def pointwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "",
    residual: Tensor | None = None,
) -> Tensor | None:
    """Returns ``act((conv2d(x, weight) + bias) * scale + shift + residual)`` in channels_last.

    Args:
        x: (N, Ci, H, W), contiguous, float32.
        weight: (Co, Ci, 1, 1), float32.
        bias: (Co,), of a floating-point dtype.
        scale: (Co,), of a floating-point dtype; it is multiplied into the weight beforehand.
        shift: (Co,), of a floating-point dtype.
        activation: the activation's name in fastseg::atrous_conv2d, or "" for none.
        residual: (N, Co, H, W).

    Returns:
        (N, Co, H, W), or None if a weight is not finite: the scale must not multiply that.
    """

    def prepare():
        folded, offset = fold(weight, bias, scale, shift)
        offset = weight.new_zeros(len(weight)) if offset is None else offset
        return folded.flatten(1).t().contiguous(), offset, is_finite(folded) and is_finite(offset)

    with torch.no_grad():
        matrix, offset, finite = prepared(weight, (bias, scale, shift), "pointwise", prepare)
        if not finite:
            return None
        n, _, h, w = x.shape
        rows = x.flatten(2).transpose(1, 2)
        y = x.new_empty(n, h * w, matrix.shape[1])
        for image, out in zip(rows, y, strict=True):
            torch.addmm(offset, image, matrix, out=out)
        y = y.view(n, h, w, -1).permute(0, 3, 1, 2)
        if residual is not None:
            y += residual
        return ACTIVATION_IN_PLACE[activation](y) if activation else y
