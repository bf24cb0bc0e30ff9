"""Dilated 3x3 convolution in fewer products on the CPU, by Winograd's algorithm.

The ops are building blocks of :func:`fastseg.atrous_conv2d`, without gradients of their own.
"""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._core.conv2d import empty_output, in_layout_of
from fastseg._core.conv2d_checks import check_conv2d, check_epilogue, check_float32_image
from fastseg._core.formulas import conv2d_epilogue
from fastseg._core.library import define
from fastseg._core.tensor_checks import check_float32
from fastseg._core.vmap import by_batch
from fastseg._core.window import pair
from fastseg._core.winograd import PANEL, winograd_axis


def _check(op, x, weight, out_channels, bias, scale, shift, residual, dilation, fast, activation):
    check_float32_image(op, x)
    conv = check_conv2d(op, (3, 3), 1, dilation, dilation, 1)
    axes = [winograd_axis(int(n), d, fast) for n, d in zip(x.shape[2:], conv.dilation, strict=True)]
    slots = len(axes[0].rows) * len(axes[1].rows)
    panels = -(-out_channels // PANEL)
    expected = (slots, panels, x.shape[1], PANEL)
    torch._check(
        weight.dim() == 4 and all(a == b for a, b in zip(weight.shape, expected, strict=True)),
        lambda: (
            f"{op}: weight must be winograd_conv2d_weight's for this size, dilation and channels,"
            f" {expected}, got {tuple(weight.shape)}"
        ),
    )
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    shape = (x.shape[0], out_channels, *x.shape[2:])
    check_epilogue(op, x, shape, vectors, residual, activation)
    return conv


def _fake(x, weight, out_channels, *others):
    _check("fastseg::winograd_conv2d", x, weight, out_channels, *others)
    return empty_output(x, out_channels, x.shape[2:])


def _reference(x, weight, out_channels, bias, scale, shift, residual, dilation, fast, activation):
    conv = _check(
        "fastseg::winograd_conv2d",
        x,
        weight,
        out_channels,
        bias,
        scale,
        shift,
        residual,
        dilation,
        fast,
        activation,
    )
    y = reference.winograd_conv2d(x, weight, out_channels, conv.dilation, fast)
    y = conv2d_epilogue(y, bias, scale, shift, residual, activation)
    return in_layout_of(x, y)


winograd_conv2d = define(
    "winograd_conv2d(Tensor x, Tensor weight, int out_channels, Tensor? bias, Tensor? scale,"
    " Tensor? shift, Tensor? residual, int[2] dilation, bool fast, str activation) -> Tensor",
    reference=_reference,
    fake=_fake,
    vmap=by_batch(0, 6),
)


def _check_branches(x, weights, channels, scale, shift, dilations, fast, activation):
    op = "fastseg::winograd_branches"
    counts = [len(weights), len(channels), len(dilations)]
    torch._check(
        len(set(counts)) == 1 and counts[0] > 0,
        lambda: (
            f"{op}: weights, channels and dilations must be as many, at least one each,"
            f" got {counts}"
        ),
    )
    for weight, count, dilation in zip(weights, channels, dilations, strict=True):
        arguments = (x, weight, count, None, None, None, None, dilation, fast, activation)
        _check(op, *arguments)
    shape = (x.shape[0], sum(channels), *x.shape[2:])
    check_epilogue(op, x, shape, {"scale": scale, "shift": shift}, None, activation)


def _fake_branches(x, weights, channels, *others):
    _check_branches(x, weights, channels, *others)
    return empty_output(x, sum(channels), x.shape[2:])


def _reference_branches(x, weights, channels, scale, shift, dilations, fast, activation):
    _check_branches(x, weights, channels, scale, shift, dilations, fast, activation)
    maps = [
        reference.winograd_conv2d(x, weight, count, (dilation, dilation), fast)
        for weight, count, dilation in zip(weights, channels, dilations, strict=True)
    ]
    y = conv2d_epilogue(torch.cat(maps, 1), None, scale, shift, None, activation)
    return in_layout_of(x, y)


winograd_branches = define(
    "winograd_branches(Tensor x, Tensor[] weights, int[] channels, Tensor? scale, Tensor? shift,"
    " int[] dilations, bool fast, str activation) -> Tensor",
    reference=_reference_branches,
    fake=_fake_branches,
    vmap=by_batch(0),
)


def _check_weight(weight, size, dilation):
    op = "fastseg::winograd_conv2d_weight"
    torch._check(
        weight.dim() == 4 and tuple(weight.shape[2:]) == (3, 3),
        lambda: f"{op}: weight must have the shape (Co, Ci, 3, 3), got {tuple(weight.shape)}",
    )
    check_float32(op, "weight", weight)
    conv = check_conv2d(op, (3, 3), 1, dilation, dilation, 1)
    sizes = pair(op, "size", size)
    torch._check(min(sizes) > 0, lambda: f"{op}: size must be positive, got {sizes}")
    return sizes, conv.dilation


def _fake_weight(weight, size, dilation, fast, adjoint):
    sizes, dilations = _check_weight(weight, size, dilation)
    axes = [winograd_axis(n, d, fast) for n, d in zip(sizes, dilations, strict=True)]
    outs, ins = weight.shape[:2] if not adjoint else weight.shape[:2][::-1]
    panels = -(-outs // PANEL)
    slots = len(axes[0].rows) * len(axes[1].rows)
    return weight.new_empty((slots, panels, ins, PANEL))


def _reference_weight(weight, size, dilation, fast, adjoint):
    sizes, dilations = _check_weight(weight, size, dilation)
    return reference.winograd_conv2d_weight(weight, sizes, dilations, fast, adjoint)


winograd_conv2d_weight = define(
    "winograd_conv2d_weight(Tensor weight, int[2] size, int[2] dilation, bool fast,"
    " bool adjoint) -> Tensor",
    reference=_reference_weight,
    fake=_fake_weight,
)
