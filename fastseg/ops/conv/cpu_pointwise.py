"""A 1x1 convolution of a contiguous map on the CPU whose output is in channels_last.

That is one matrix product, of the map's transpose: neither map is converted, which takes as long
as a third of the product.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg._core.library import plain_on_cpu
from fastseg.ops.conv.cpu_plan import is_finite
from fastseg.ops.conv.prepared_weights import prepared

_IN_PLACE = {
    "relu": torch.relu_,
    "relu6": functools.partial(F.hardtanh_, min_val=0.0, max_val=6.0),
    "leaky_relu": functools.partial(F.leaky_relu_, negative_slope=0.01),
    "silu": functools.partial(F.silu, inplace=True),
    "hardswish": functools.partial(F.hardswish, inplace=True),
}
FEWEST_CHANNELS, FEWEST_PIXELS = 16, 256
"""Below these a product is small beside its call, and the map soon converted."""


def suits(x: Tensor, weight: Tensor, *vectors: Tensor | None) -> bool:
    """Whether :func:`pointwise_conv2d` is for such tensors, which need no gradient."""
    return (
        x.dtype == weight.dtype == torch.float32
        and min(weight.shape[:2]) >= FEWEST_CHANNELS
        and len(x) > 0
        and x.shape[2] * x.shape[3] >= FEWEST_PIXELS
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
    """``act((conv2d(x, weight) + bias) * scale + shift + residual)`` in channels_last.

    Args:
        x: (N, Ci, H, W), contiguous, float32.
        weight: (Co, Ci, 1, 1), float32.
        bias: (Co,), like scale and shift.
        scale: multiplies the weight beforehand.
        shift: is added.
        activation: the op's name for it, or "".
        residual: (N, Co, H, W).

    Returns:
        (N, Co, H, W), or None if a weight is not finite, which must not be multiplied beforehand.
    """

    def prepare():
        folded = weight if scale is None else weight * scale.float().view(-1, 1, 1, 1)
        offset = weight.new_zeros(len(weight)) if bias is None else bias.float()
        offset = offset if scale is None else offset * scale.float()
        offset = offset if shift is None else offset + shift.float()
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
        return _IN_PLACE[activation](y) if activation else y
