"""fastseg.separable_atrous_conv2d: a depthwise atrous convolution and a pointwise one."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._conv2d import Ints
from fastseg.ops.atrous_conv2d import atrous_conv2d


def separable_atrous_conv2d(
    x: Tensor,
    depthwise_weight: Tensor,
    pointwise_weight: Tensor,
    *,
    depthwise_bias: Tensor | None = None,
    depthwise_scale: Tensor | None = None,
    depthwise_shift: Tensor | None = None,
    depthwise_activation: str | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
    stride: Ints = 1,
    padding: Ints | str = "same",
    dilation: Ints = 1,
) -> Tensor:
    """Atrous separable convolution: two :func:`fastseg.atrous_conv2d`, each with its epilogue.

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018, section 3.1::

        h = depthwise_act((conv2d(x, depthwise_weight, groups=Ci) + depthwise_bias)
                          * depthwise_scale + depthwise_shift)
        y = act((conv2d(h, pointwise_weight) + bias) * scale + shift + residual)

    h is rounded to x's dtype. Differentiable in all tensors.

    Args:
        x: (N, Ci, H, W) or (Ci, H, W), as in :func:`fastseg.atrous_conv2d`.
        depthwise_weight: (Ci, 1, kh, kw), kh and kw odd, x's dtype.
        pointwise_weight: (Co, Ci, 1, 1), x's dtype.
        depthwise_bias: (Ci,), a floating dtype, like the depthwise scale and shift.
        depthwise_scale: (Ci,).
        depthwise_shift: (Ci,).
        depthwise_activation: as activation.
        bias: (Co,), a floating dtype, like scale and shift.
        scale: (Co,).
        shift: (Co,).
        activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
        residual: like the output, x's dtype.
        stride: of the depthwise convolution, one integer or (vertical, horizontal), like padding
            and dilation.
        padding: as in :func:`fastseg.atrous_conv2d`.
        dilation: the rate.

    Returns:
        (N, Co, h, w), x's dtype, channels_last if x is, else contiguous.

    Raises:
        RuntimeError: an argument that does not fit, by its name.
    """
    op = "fastseg::separable_atrous_conv2d"
    depthwise, pointwise = tuple(depthwise_weight.shape), tuple(pointwise_weight.shape)
    torch._check(
        len(depthwise) == 4 and depthwise[1] == 1,
        lambda: f"{op}: depthwise_weight must have the shape (Ci, 1, kh, kw), got {depthwise}",
    )
    torch._check(
        len(pointwise) == 4 and pointwise[2:] == (1, 1),
        lambda: f"{op}: pointwise_weight must have the shape (Co, Ci, 1, 1), got {pointwise}",
    )
    h = atrous_conv2d(
        x,
        depthwise_weight,
        depthwise_bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=depthwise[0],
        scale=depthwise_scale,
        shift=depthwise_shift,
        activation=depthwise_activation,
    )
    return atrous_conv2d(
        h, pointwise_weight, bias, scale=scale, shift=shift, activation=activation,
        residual=residual,
    )  # fmt: skip
