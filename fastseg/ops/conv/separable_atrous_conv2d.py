"""The function fastseg.separable_atrous_conv2d: a depthwise and a pointwise convolution."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from fastseg._core.autocast import autocast_dtype, cast
from fastseg._core.conv2d import resolve_padding
from fastseg._core.conv2d_checks import (
    check_activation,
    check_conv2d,
    check_epilogue,
    check_image_and_weight,
    check_output_size,
)
from fastseg._core.float32_precision import reduced_on_cpu
from fastseg._core.library import CPU_PLANS, keep_plan
from fastseg._core.plain_tensors import needs_gradient, plain_on_cpu
from fastseg._core.remember import remember
from fastseg._core.tensor_checks import FLOATS, check_alike, check_optional_tensors, check_tensors
from fastseg._core.window import Ints
from fastseg.ops.conv.atrous_conv2d import (
    CPUPlan,
    atrous_conv2d,
    cpu_plan,
    refuse_residual_of_image,
)

OP = "fastseg::separable_atrous_conv2d"


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
    """Computes an atrous separable convolution: two convolutions, each with its epilogue.

    Chen et al., "Encoder-Decoder with Atrous Separable Convolution", 2018, section 3.1::

        h = depthwise_act((conv2d(x, depthwise_weight, groups=Ci) + depthwise_bias)
                          * depthwise_scale + depthwise_shift)
        y = act((conv2d(h, pointwise_weight) + bias) * scale + shift + residual)

    h is rounded to x's dtype. The result is differentiable in all tensors.

    Args:
        x: (N, Ci, H, W) or (Ci, H, W), any strides; float32, float64, float16 or bfloat16.
        depthwise_weight: (Ci, 1, kh, kw), kh and kw odd, x's dtype.
        pointwise_weight: (Co, Ci, 1, 1), x's dtype.
        depthwise_bias: (Ci,), of a floating-point dtype.
        depthwise_scale: (Ci,), of a floating-point dtype.
        depthwise_shift: (Ci,), of a floating-point dtype.
        depthwise_activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or
            "hardswish".
        bias: (Co,), of a floating-point dtype.
        scale: (Co,), of a floating-point dtype.
        shift: (Co,), of a floating-point dtype.
        activation: None, "relu", "relu6", "leaky_relu" (slope 0.01), "silu" or "hardswish".
        residual: a tensor of the output's shape and x's dtype.
        stride: stride of the depthwise convolution, one integer or (vertical, horizontal).
        padding: padding of the depthwise convolution, one integer or (vertical, horizontal), at
            most ``dilation * (kernel - 1)``; "same" keeps the size at stride 1; "valid" is none.
        dilation: rate of the depthwise convolution, one integer or (vertical, horizontal).

    Returns:
        (N, Co, h, w), x's dtype, channels_last if x is, else contiguous.

    Raises:
        TypeError: an argument that is no tensor.
        RuntimeError: an argument that does not fit; the error names it.
    """
    first = (x, depthwise_weight, depthwise_bias, depthwise_scale, depthwise_shift, None)
    second = (pointwise_weight, bias, scale, shift, residual)
    geometry = (stride, padding, dilation)
    activations = depthwise_activation or "", activation or ""
    if plain_on_cpu(first) and plain_on_cpu(second):
        plans = _cpu_plans(first, second, geometry, *activations)
        if plans is not None and not (needs_gradient(first) or needs_gradient(second)):
            return plans[1].run(plans[0].run(*first), *second)
    elif not is_dynamo_compiling():
        _check_once(first, second, geometry, *activations)
    h = atrous_conv2d(
        x,
        depthwise_weight,
        depthwise_bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=depthwise_weight.shape[0],
        scale=depthwise_scale,
        shift=depthwise_shift,
        activation=depthwise_activation,
    )
    return atrous_conv2d(
        h,
        pointwise_weight,
        bias,
        scale=scale,
        shift=shift,
        activation=activation,
        residual=residual,
    )


def _check(first, second, geometry, depthwise_activation, activation):
    """Checks the arguments, with their names here; returns the geometry and h's shape."""
    x, depthwise_weight, *depthwise_vectors, _ = first
    pointwise_weight, *vectors, residual = second
    names = ("bias", "scale", "shift")
    of_depthwise = {f"depthwise_{n}": v for n, v in zip(names, depthwise_vectors, strict=True)}
    of_pointwise = dict(zip(names, vectors, strict=True))
    weights = {"depthwise_weight": depthwise_weight, "pointwise_weight": pointwise_weight}
    check_tensors(OP, x=x, **weights)
    check_optional_tensors(OP, **of_depthwise, **of_pointwise, residual=residual)
    if x.dim() == 3:
        if residual is not None and residual.dim() != 3:
            refuse_residual_of_image(OP, residual)
        x, residual = x[None], residual if residual is None else residual[None]
    lower = autocast_dtype(x)
    if lower is not None:
        x, depthwise_weight, pointwise_weight = cast(lower, x, depthwise_weight, pointwise_weight)
        if residual is not None and residual.dtype in FLOATS:
            residual = residual.to(x.dtype)  # any dtype may be added to torch's result
    shape = tuple(depthwise_weight.shape)
    torch._check(
        len(shape) == 4 and shape[1] == 1,
        lambda: f"{OP}: depthwise_weight must have the shape (Ci, 1, kh, kw), got {shape}",
    )
    check_image_and_weight(OP, x, depthwise_weight, shape[0], "depthwise_weight")
    stride, padding, dilation = geometry
    padding = resolve_padding(OP, padding, shape[2:], dilation)
    conv = check_conv2d(OP, shape[2:], stride, padding, dilation, shape[0], "depthwise_weight")
    size = check_output_size(OP, "x", x.shape[2:], shape[2:], conv)
    h_shape = (*x.shape[:2], *size)
    check_epilogue(OP, x, h_shape, of_depthwise, None, "")
    check_activation(OP, depthwise_activation, "depthwise_activation")
    point = tuple(pointwise_weight.shape)
    torch._check(
        len(point) == 4 and point[0] > 0 and point[1:] == (shape[0], 1, 1),
        lambda: (
            f"{OP}: pointwise_weight must have the shape (Co, Ci, 1, 1) with x's {shape[0]}"
            f" channels, got {point}"
        ),
    )
    check_alike(OP, "pointwise_weight", pointwise_weight, "x", x)
    check_epilogue(OP, x, (x.shape[0], point[0], *size), of_pointwise, residual, activation)
    return conv, h_shape


_check_once = remember(_check)


def _cpu_plans(first, second, geometry, *activations) -> tuple[CPUPlan, CPUPlan] | None:
    """Returns the cached plans of both convolutions, or None where :func:`cpu_plan` does."""
    try:
        key = (
            "separable",
            *(t if t is None else (t.shape, t.dtype) for t in (*first, *second)),
            geometry,
            activations,
            reduced_on_cpu(),
        )
        plans = CPU_PLANS.get(key)
    except TypeError:
        plans = None
    if plans is None:
        conv, h_shape = _check_once(first, second, geometry, *activations)
        if first[0].dim() == 3:
            return None
        h = first[0].new_empty(()).expand(h_shape)  # only its shape and dtype count
        plans = (
            cpu_plan(first, *conv, activations[0]),
            cpu_plan((h, *second), (1, 1), (0, 0), (1, 1), 1, activations[1]),
        )
        if None in plans:
            return None
        keep_plan(key, plans)
    return plans
