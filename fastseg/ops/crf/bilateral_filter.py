"""The bilateral filter of a batch of images, each on a lattice that serves one filtering."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LATTICE_QUALITY
from fastseg._core.library import call, define
from fastseg._core.pairwise import bilateral_features
from fastseg._core.permutohedral import MAX_DIMENSIONS
from fastseg._core.tensor_checks import check_alike, check_float32_or_64, check_tensors
from fastseg._core.vmap import by_slices, in_front

OP = "fastseg::bilateral_filter"
ops = torch.ops.fastseg


def bilateral_filter(
    values: Tensor,
    image: Tensor,
    sxy: float,
    srgb: float,
    *,
    quality: str = "compat",
    transposed: bool = False,
) -> Tensor:
    """The sums of all pixels' values, weighted by a Gaussian of positions and colours.

    ``out_i = sum_j exp(-|p_i - p_j|^2 / (2 sxy^2) - |I_i - I_j|^2 / (2 srgb^2)) v_j``, not
    normalised, on a permutohedral lattice. The filter of :class:`fastseg.PermutohedralLattice`
    with the features of :class:`fastseg.PairwiseBilateral`, for an image that is filtered once: no
    lattice is kept. Deterministic, for any number of threads. Differentiable in values.

    Args:
        values: v, (B, K, H, W), float32 or float64.
        image: I, (B, C, H, W) with C from 1 to 6, of the values' dtype, in the units of srgb.
        sxy: the standard deviation in pixels, positive.
        srgb: the standard deviation of the image's channels, positive.
        quality: "compat": Krähenbühl and Koltun's lattice. "high": one with smaller errors, whose
            matrix is symmetric.
        transposed: whether to multiply by the transposed matrix instead.

    Returns:
        (B, K, H, W), contiguous.

    Raises:
        TypeError: arguments that are not tensors.
        RuntimeError: shapes, dtypes, devices or bandwidths that do not fit; images that are not
            finite, or too large for the lattice.
        NotImplementedError: a gradient of the image.
    """
    check_tensors(OP, values=values, image=image)
    lattice = LATTICE_QUALITY[quality]
    return call(
        _bilateral_filter,
        (values, image),
        sxy,
        srgb,
        lattice.refine,
        lattice.dilation,
        lattice.passes,
        lattice.symmetric,
        transposed,
        lattice.gain(2 + image.shape[1]) if image.dim() == 4 else 1.0,
        lattice.side,
    )


def check(op: str, name: str, values: Tensor, image: Tensor, sxy: float, srgb: float) -> None:
    """Raises RuntimeError for arguments that no bilateral filter takes.

    Args:
        op: the op, with which the error begins.
        name: the name of the argument `values`.
        values: what is filtered.
        image: the image.
        sxy: the standard deviation in pixels.
        srgb: the standard deviation of the image's channels.
    """
    check_float32_or_64(op, name, values)
    torch._check(
        values.dim() == 4,
        lambda: f"{op}: {name} must have shape (B, K, H, W), got {tuple(values.shape)}",
    )
    b, _, h, w = values.shape
    most = MAX_DIMENSIONS - 2
    torch._check(
        image.dim() == 4
        and image.shape[0] == b
        and image.shape[2:] == (h, w)
        and 1 <= image.shape[1] <= most,
        lambda: (
            f"{op}: image must have shape ({b}, C, {h}, {w}) with C from 1 to {most}, got "
            f"{tuple(image.shape)}"
        ),
    )
    check_alike(op, "image", image, name, values)
    for bandwidth, value in (("sxy", sxy), ("srgb", srgb)):
        torch._check(
            0 < value < math.inf,
            lambda b=bandwidth, v=value: f"{op}: {b} must be positive and finite, got {v}",
        )


def _fake(values, image, sxy, srgb, *others):
    check(OP, "values", values, image, sxy, srgb)
    return values.new_empty(values.shape)


def _reference(
    values,
    image,
    sxy,
    srgb,
    refine=1.0,
    dilation=0,
    passes=1,
    symmetric=False,
    reverse=False,
    gain=1.0,
    side=0.5,
):
    """The two ops that it is made of, which have kernels on a GPU."""
    check(OP, "values", values, image, sxy, srgb)
    if values.numel() == 0:
        return values.new_empty(values.shape)
    features = bilateral_features(OP, image, sxy, srgb, values.dtype).flatten(2)
    lattice = ops.permutohedral_lattice(features, refine, dilation)[:7]
    options = passes, symmetric, reverse, gain, side
    return ops.permutohedral_filter(values.flatten(2), *lattice, *options).view(values.shape)


def _setup_context(ctx, inputs, output):
    _, image, *ctx.options = inputs
    ctx.save_for_backward(image)


def _backward(ctx, grad):
    if ctx.needs_input_grad[1]:
        raise NotImplementedError(
            f"{OP}: image has no gradient here, which fastseg.PermutohedralLattice has of features"
        )
    *others, reverse, gain, side = ctx.options
    tensors = grad, ctx.saved_tensors[0]
    return call(_bilateral_filter, tensors, *others, not reverse, gain, side), None


def _vmap(op, info, in_dims, values, image, *others):
    """The rule by which vmap's dimension becomes part of the batch; of values alone, of K."""
    if any(d is not None for d in in_dims[2:]):
        return by_slices(op, info, in_dims, values, image, *others)
    if in_dims[1] is None:
        front = values.movedim(in_dims[0], 1)  # (B, vmap's, K, H, W)
        return op(front.flatten(1, 2), image, *others).unflatten(1, front.shape[1:3]), 1
    pairs = zip((values, image), in_dims[:2], strict=True)
    values, image = (in_front(info.batch_size, d, t) for t, d in pairs)
    out = op(values.flatten(0, 1), image.flatten(0, 1), *others)
    return out.unflatten(0, values.shape[:2]), 0


define(
    "bilateral_filter(Tensor values, Tensor image, float sxy, float srgb, float refine=1.0,"
    " int dilation=0, int passes=1, bool symmetric=False, bool reverse=False, float gain=1.0,"
    " float side=0.5) -> Tensor",
    reference=_reference,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=_vmap,
)
_bilateral_filter = ops.bilateral_filter.default
