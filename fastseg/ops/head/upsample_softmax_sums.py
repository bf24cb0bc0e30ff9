"""The op of sums of upsampled logits' probabilities, of which region losses are made."""

from __future__ import annotations

import torch

from fastseg import reference
from fastseg._core.formulas import compute_dtype
from fastseg._core.library import call, define
from fastseg._core.pool2d import empty_plane, memory_format
from fastseg._core.targets import (
    check_loss_dtype,
    check_pixels,
    check_target,
    check_target_values,
)

ops = torch.ops.fastseg


def _fake(logits, target, align_corners, ignore_index, squared):
    check_target("fastseg::upsample_softmax_sums", logits, target)
    dtype = compute_dtype(logits.dtype)
    sums = (logits.new_empty(logits.shape[:2], dtype=dtype) for _ in range(3))
    return *sums, logits.new_empty(target.shape, dtype=dtype)


def _reference(logits, target, align_corners, ignore_index, squared):
    op = "fastseg::upsample_softmax_sums"
    check_target(op, logits, target)
    check_target_values(op, target, logits.shape[1], ignore_index)
    return reference.upsample_softmax_sums(logits, target, align_corners, ignore_index, squared)


def _setup_context(ctx, inputs, output):
    logits, target, *ctx.options = inputs
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(logits, target, output[3])


def _backward(ctx, grad_intersection, grad_probability, *_):
    logits, target, normalizer = ctx.saved_tensors
    grads = [
        normalizer.new_zeros(logits.shape[:2]) if g is None else g
        for g in (grad_intersection, grad_probability)
    ]
    op = ops.upsample_softmax_sums_backward.default
    return call(op, (*grads, logits, target, normalizer), *ctx.options), None


define(
    "upsample_softmax_sums(Tensor logits, Tensor target, bool align_corners, int ignore_index,"
    " bool squared) -> (Tensor intersection, Tensor probability, Tensor count, Tensor normalizer)",
    reference=_reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)


def _check_backward(grad_intersection, grad_probability, logits, target, normalizer):
    op = "fastseg::upsample_softmax_sums_backward"
    check_target(op, logits, target)
    for name, grad in (
        ("grad_intersection", grad_intersection),
        ("grad_probability", grad_probability),
    ):
        torch._check(
            grad.shape == logits.shape[:2],
            lambda name=name, grad=grad: (
                f"{op}: {name} must have the shape (N, C) = {tuple(logits.shape[:2])}, got "
                f"{tuple(grad.shape)}"
            ),
        )
        check_loss_dtype(op, name, grad, logits)
    check_pixels(op, "normalizer", normalizer, target, logits)


def _fake_backward(
    grad_intersection,
    grad_probability,
    logits,
    target,
    normalizer,
    align_corners,
    ignore_index,
    squared,
):
    _check_backward(grad_intersection, grad_probability, logits, target, normalizer)
    return empty_plane(logits, logits.shape[-2:], memory_format(logits))


def _reference_backward(grad_intersection, grad_probability, logits, target, normalizer, *options):
    _check_backward(grad_intersection, grad_probability, logits, target, normalizer)
    return reference.upsample_softmax_sums_backward(
        grad_intersection, grad_probability, logits, target, normalizer, *options
    )


define(
    "upsample_softmax_sums_backward(Tensor grad_intersection, Tensor grad_probability,"
    " Tensor logits, Tensor target, Tensor normalizer, bool align_corners, int ignore_index,"
    " bool squared) -> Tensor",
    reference=_reference_backward,
    fake=_fake_backward,
)
