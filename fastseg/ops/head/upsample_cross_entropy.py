"""The op fastseg.upsample_cross_entropy and the op of its gradient."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fastseg import reference
from fastseg._core.autocast import autocast_dtype
from fastseg._core.formulas import compute_dtype
from fastseg._core.library import call, define
from fastseg._core.pool2d import empty_plane, memory_format
from fastseg._core.targets import (
    REDUCTIONS,
    check_class_weight,
    check_loss,
    check_pixels,
    check_target,
    check_target_values,
)

ops = torch.ops.fastseg
NAME = "fastseg::upsample_cross_entropy"


def upsample_cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    align_corners: bool = False,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: Literal["none", "mean", "sum"] = "mean",
    weight_map: Tensor | None = None,
) -> Tensor:
    """Computes the cross-entropy of bilinearly upsampled logits, which are never stored.

    ``F.cross_entropy(F.interpolate(logits, target.shape[1:], mode="bilinear"), target, ...)`` in
    one op with a gradient: a training step keeps one number for each pixel, two with
    ``reduction="none"``, where torch's ops keep several for each pixel and class. Logits of any
    strides are read where they are and computed in float32, or float64. Value and gradient are
    deterministic for any number of threads. Pixels that are ignored have no part in either,
    whatever their logits. The gradient of the gradient is plain PyTorch's, which stores logits of
    full size. On a GPU it is a CUDA kernel, which has not run on one yet.

    Args:
        logits: (N, C, h, w); float32, float64, float16 or bfloat16.
        target: (N, H, W), the classes of pixels; int64, int32 or uint8.
        align_corners: whether the corner pixels' centres are those of the logits, as in
            ``F.interpolate``.
        weight: (C,), a factor for the pixels of each class, or None; it has no gradient.
        ignore_index: the target of pixels without a loss, for example 255 in uint8.
        label_smoothing: the share of the target that all classes get, 0 to 1.
        reduction: "none" for the losses of pixels, (N, H, W); "sum"; or "mean", their sum divided
            by the sum of the pixels' weights: of ``weight[target]``, times weight_map. Where all
            pixels are ignored this is NaN, and the gradient 0, as in torch.
        weight_map: (N, H, W), a factor for each pixel, such as the weights of borders in U-Net, or
            None; it has no gradient.

    Returns:
        The loss in the logits' dtype; under autocast in float32, as torch's.

    Raises:
        TypeError: a tensor is none.
        RuntimeError: wrong shapes, dtypes or options; a target that is no class (on a GPU a
            device-side assert).
    """
    check_loss(NAME, logits, target, reduction, weight=weight, weight_map=weight_map)
    loss = pixel_losses(
        logits,
        target,
        align_corners,
        weight,
        ignore_index,
        label_smoothing,
        reduction,
        weight_map,
    )
    return loss if autocast_dtype(logits) is not None else loss.to(logits.dtype)


def pixel_losses(
    logits: Tensor,
    target: Tensor,
    align_corners: bool,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    weight_map: Tensor | None,
) -> Tensor:
    """Returns the cross-entropy in float32 or float64, of which other losses are made.

    Args:
        logits: (N, C, h, w).
        target: (N, H, W).
        align_corners: the option of ``F.interpolate``.
        weight: (C,) or None.
        ignore_index: the target of pixels without a loss.
        label_smoothing: 0 to 1.
        reduction: "none", "mean" or "sum".
        weight_map: (N, H, W) or None.
    """
    dtype = compute_dtype(logits.dtype)
    factors = [t if t is None else t.to(dtype) for t in (weight, weight_map)]
    return call(
        _upsample_cross_entropy,
        (logits, target, *factors),
        align_corners,
        ignore_index,
        label_smoothing,
        reduction,
    )[0]


def _check(op, logits, target, weight, weight_map, label_smoothing):
    check_target(op, logits, target)
    check_class_weight(op, weight, logits)
    check_pixels(op, "weight_map", weight_map, target, logits)
    torch._check(
        0 <= label_smoothing <= 1,
        lambda: f"{op}: label_smoothing must lie in [0, 1], got {label_smoothing}",
    )


def _check_forward(logits, target, weight, weight_map, label_smoothing, reduction):
    _check(NAME, logits, target, weight, weight_map, label_smoothing)
    torch._check(
        reduction in REDUCTIONS,
        lambda: f'{NAME}: reduction must be "none", "mean" or "sum", got "{reduction}"',
    )


def _fake(logits, target, weight, weight_map, align_corners, ignore_index, smoothing, reduction):
    _check_forward(logits, target, weight, weight_map, smoothing, reduction)
    dtype = compute_dtype(logits.dtype)
    loss = logits.new_empty(target.shape if reduction == "none" else (), dtype=dtype)
    return loss, logits.new_empty((), dtype=dtype), logits.new_empty(target.shape, dtype=dtype)


def _reference(
    logits, target, weight, weight_map, align_corners, ignore_index, smoothing, reduction
):
    _check_forward(logits, target, weight, weight_map, smoothing, reduction)
    check_target_values(NAME, target, logits.shape[1], ignore_index)
    return reference.upsample_cross_entropy(
        logits, target, weight, weight_map, align_corners, ignore_index, smoothing, reduction
    )


def _setup_context(ctx, inputs, output):
    logits, target, weight, weight_map, *options = inputs
    _, total_weight, normalizer = output
    for name, needed in zip(("weight", "weight_map"), ctx.needs_input_grad[2:4], strict=True):
        if needed:
            raise NotImplementedError(f"{NAME}: {name} has no gradient; detach it")
    *ctx.options, ctx.reduction = options
    ctx.mark_non_differentiable(total_weight, normalizer)
    ctx.save_for_backward(logits, target, normalizer, weight, weight_map, total_weight)


def _backward(ctx, grad, *_):
    *tensors, total_weight = ctx.saved_tensors
    if ctx.reduction == "mean":
        grad = grad / total_weight
    grad = grad.expand(tensors[1].shape)
    op = ops.upsample_cross_entropy_backward.default
    return call(op, (grad, *tensors), *ctx.options), None, None, None


_upsample_cross_entropy = define(
    "upsample_cross_entropy(Tensor logits, Tensor target, Tensor? weight, Tensor? weight_map,"
    " bool align_corners, int ignore_index, float label_smoothing, str reduction)"
    " -> (Tensor loss, Tensor total_weight, Tensor normalizer)",
    reference=_reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad, logits, target, normalizer, weight, weight_map, label_smoothing):
    op = "fastseg::upsample_cross_entropy_backward"
    _check(op, logits, target, weight, weight_map, label_smoothing)
    check_pixels(op, "grad", grad, target, logits)
    check_pixels(op, "normalizer", normalizer, target, logits)


def _fake_backward(
    grad, logits, target, normalizer, weight, weight_map, align_corners, ignore_index, smoothing
):
    _check_backward(grad, logits, target, normalizer, weight, weight_map, smoothing)
    return empty_plane(logits, logits.shape[-2:], memory_format(logits))


def _reference_backward(
    grad, logits, target, normalizer, weight, weight_map, align_corners, ignore_index, smoothing
):
    _check_backward(grad, logits, target, normalizer, weight, weight_map, smoothing)
    return reference.upsample_cross_entropy_backward(
        grad, logits, target, normalizer, weight, weight_map, align_corners, ignore_index, smoothing
    )


def _setup_double(ctx, inputs, output):
    *tensors, align_corners, ignore_index, label_smoothing = inputs
    if any(ctx.needs_input_grad[3:6]):
        raise NotImplementedError(f"{NAME}_backward: only grad and logits have a gradient")
    ctx.options = align_corners, ignore_index, label_smoothing
    ctx.save_for_backward(*tensors)


def _double_backward(ctx, grad):
    """The gradient of the reference's gradient, which computes the normalizer anew."""
    weights, logits, target, _, weight, weight_map = ctx.saved_tensors

    def first(weights, logits):
        normalizer = reference.upsample(logits, target.shape[1:], ctx.options[0]).logsumexp(1)
        return reference.upsample_cross_entropy_backward(
            weights, logits, target, normalizer, weight, weight_map, *ctx.options
        )

    # It goes along with torch.func's transforms, as torch.autograd.grad does not.
    second = torch.func.vjp(first, weights, logits)[1](grad)
    return *second, None, None, None, None


define(
    "upsample_cross_entropy_backward(Tensor grad, Tensor logits, Tensor target, Tensor normalizer,"
    " Tensor? weight, Tensor? weight_map, bool align_corners, int ignore_index,"
    " float label_smoothing) -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
    setup_context=_setup_double,
    backward=_double_backward,
)
