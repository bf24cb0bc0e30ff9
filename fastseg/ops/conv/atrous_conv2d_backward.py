"""The derivative of fastseg::atrous_conv2d, with its epilogue."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.conv2d import Conv2d
from fastseg._core.formulas import compute_dtype
from fastseg.ops.conv.atrous_conv2d_grad import input_grad, weight_grad

RECOMPUTED = ("silu", "hardswish")
"""Names of the activations whose derivative needs the activation's input, which is recomputed."""


def setup_context(ctx, inputs, output) -> None:
    """Keeps what :func:`backward` needs."""
    x, weight, bias, scale, shift, residual, stride, padding, dilation, groups, act = inputs
    ctx.conv = Conv2d(tuple(stride), tuple(padding), tuple(dilation), groups)
    ctx.activation = act
    ctx.dtypes = [None if t is None else t.dtype for t in (bias, scale, shift)]
    recompute = act in RECOMPUTED
    ctx.save_for_backward(
        x,
        weight,
        bias,
        scale,
        *((shift, residual) if recompute else (None, None)),
        None if recompute or act == "" else output,
    )


ACTIVATION_BACKWARD = {
    # The first three derivatives are functions of the activation's output.
    "relu": lambda grad, y: torch.ops.aten.threshold_backward(grad, y, 0),
    "relu6": lambda grad, y: torch.ops.aten.hardtanh_backward(grad, y, 0, 6),
    "leaky_relu": lambda grad, y: torch.ops.aten.leaky_relu_backward(grad, y, 0.01, True),
    # These are functions of its input.
    "silu": lambda grad, z: grad * (s := z.sigmoid()) * (1 + z * (1 - s)),
    "hardswish": torch.ops.aten.hardswish_backward,
}
"""Derivatives of the activations by their names."""


def backward(ctx, grad) -> list[Tensor | None]:
    """Returns the gradients of x, weight, bias, scale, shift and residual.

    Let z = (c + bias) * scale + shift + residual with c = conv2d(x, weight), and g = dz. Then
    dresidual = g, dshift = sum g and dbias = scale * sum g; dx and dweight are the convolution's
    for scale * g. Since c is linear in the weight, dscale = sum g (c + bias) = <weight, G> + bias *
    sum g, where G is the weight's gradient for g alone: c is not needed.
    """
    x, weight, bias, scale, shift, residual, y = ctx.saved_tensors
    needs = ctx.needs_input_grad
    if ctx.activation in RECOMPUTED:
        y = torch.ops.fastseg.atrous_conv2d(x, weight, bias, scale, shift, residual, *ctx.conv, "")
    if ctx.activation:
        grad = ACTIVATION_BACKWARD[ctx.activation](grad, y)
    wide = compute_dtype(grad.dtype)
    factor = None if scale is None else scale.to(wide).view(-1, 1, 1, 1)
    grads = [None] * 6
    if needs[0]:
        scaled = weight if factor is None else (weight * factor).to(weight.dtype)
        temporary = factor is not None
        grads[0] = input_grad(grad, scaled, x.shape[2:], ctx.conv, temporary)
    by_weight = None
    if needs[1] or needs[3]:
        by_weight = weight_grad(x, grad, weight.shape[2:], ctx.conv)
    if needs[1]:
        # Without a factor it stays as it is: a wider dtype would copy a network's weights twice.
        grads[1] = by_weight if factor is None else (by_weight * factor).to(weight.dtype)
    if needs[2] or needs[3] or needs[4]:
        total = grad.sum((0, 2, 3), dtype=wide)
        if needs[2]:
            grads[2] = (total if scale is None else total * scale.to(wide)).to(ctx.dtypes[0])
        if needs[3]:
            by_scale = (by_weight.to(wide) * weight).sum((1, 2, 3))
            if bias is not None:
                by_scale = by_scale + bias.to(wide) * total
            grads[3] = by_scale.to(ctx.dtypes[1])
        if needs[4]:
            grads[4] = total.to(ctx.dtypes[2])
    if needs[5]:
        grads[5] = grad
    return grads
