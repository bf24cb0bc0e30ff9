"""The dense energy of soft segmentations: the loss of Tang et al., value and gradient at once."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.lattice_quality import QUALITIES
from fastseg._core.library import call, define
from fastseg._core.pairwise import bilateral_features
from fastseg._core.tensor_checks import check_alike, check_optional_tensors, check_tensors
from fastseg.ops.crf.bilateral_filter import bilateral_filter
from fastseg.ops.crf.bilateral_filter import check as check_filter
from fastseg.ops.crf.filters import EXACT_CUTOFF, fixed_order_sum

OP = "fastseg::dense_energy"
ops = torch.ops.fastseg


def dense_energy(
    segmentations: Tensor,
    image: Tensor,
    sxy: float,
    srgb: float,
    *,
    rois: Tensor | None = None,
    gates: Tensor | None = None,
    quality: str = "compat",
) -> Tensor:
    """The energy of a dense CRF's bilateral term, relaxed to soft segmentations.

    ``-1/B sum_b sum_k <s_k, g W s_k>`` with s = rois * segmentations and W the Gaussian of
    positions and colours, not normalised. Tang et al., "On Regularized Losses for
    Weakly-supervised CNN Segmentation", 2018.

    The gradient of the segmentations is ``-2/B rois g W s``, as published: one filtering gives
    both. It is the energy's derivative where W is symmetric ("high", "exact") and g is constant
    over pixels; the other part, ``-1/B rois (W (g s) - g W s)``, is left out. The second derivative
    is that of this gradient.

    Args:
        segmentations: (B, K, H, W), float32 or float64.
        image: (B, C, H, W) with C from 1 to 6, of the segmentations' dtype, in the units of srgb.
        sxy: the standard deviation in pixels.
        srgb: the standard deviation of the image's channels.
        rois: the weights of pixels, (B, H, W). Default: ones.
        gates: g, the weights of pixels' sums, (B, H, W). Default: ones.
        quality: "compat": the published lattice. "high", "exact": as in :func:`fastseg.dense_crf`.

    Returns:
        The energy, (); 0 for an empty batch. Deterministic, for any number of threads.

    Raises:
        TypeError: arguments that are not tensors.
        RuntimeError: shapes, dtypes, devices or bandwidths that do not fit; images that are not
            finite, or too large for the lattice.
        NotImplementedError: a gradient of another tensor than the segmentations.
    """
    check_tensors(OP, segmentations=segmentations, image=image)
    check_optional_tensors(OP, rois=rois, gates=gates)
    tensors = (segmentations, image, rois, gates)
    return call(_dense_energy, tensors, sxy, srgb, QUALITIES.index(quality))[0]


def _check(segmentations, image, rois, gates, sxy, srgb, quality):
    check_filter(OP, "segmentations", segmentations, image, sxy, srgb)
    shape = (segmentations.shape[0], *segmentations.shape[2:])
    for name, t in (("rois", rois), ("gates", gates)):
        if t is None:
            continue
        check_alike(OP, name, t, "segmentations", segmentations)
        torch._check(
            t.shape == shape,
            lambda n=name, t=t: f"{OP}: {n} must have shape {shape}, got {tuple(t.shape)}",
        )
    torch._check(
        0 <= quality < len(QUALITIES),
        lambda: f"{OP}: quality must be 0 (compat), 1 (high) or 2 (exact), got {quality}",
    )


def _fake(segmentations, image, rois, gates, sxy, srgb, quality):
    _check(segmentations, image, rois, gates, sxy, srgb, quality)
    return segmentations.new_empty(()), segmentations.new_empty(segmentations.shape)


def _energy(segmentations, image, rois, gates, sxy, srgb, quality) -> tuple[Tensor, Tensor]:
    """The energy, and its gradient; a composition of the filters, which have the kernels."""
    _check(segmentations, image, rois, gates, sxy, srgb, quality)
    images = max(segmentations.shape[0], 1)
    s = segmentations if rois is None else segmentations * rois[:, None]
    filtered = _filter(s, image, sxy, srgb, QUALITIES[quality])
    if gates is not None:
        filtered *= gates[:, None]
    energy = fixed_order_sum(s * filtered) / -images
    if rois is not None:
        filtered *= rois[:, None]
    return energy, filtered.mul_(-2 / images)


def _filter(
    s: Tensor, image: Tensor, sxy: float, srgb: float, quality: str, transposed: bool = False
) -> Tensor:
    """W s, in memory of its own."""
    if s.numel() == 0:
        return s.new_zeros(s.shape)
    if quality != "exact":
        return bilateral_filter(s, image, sxy, srgb, quality=quality, transposed=transposed)
    features = bilateral_features(OP, image, sxy, srgb, s.dtype).flatten(2)
    out = ops.exact_gaussian_filter(s.flatten(2), features, EXACT_CUTOFF[s.dtype])
    return out.view(s.shape)


def _setup_context(ctx, inputs, output):
    _, *constants, ctx.sxy, ctx.srgb, ctx.quality = inputs
    ctx.save_for_backward(output[1], *constants)


def _backward(ctx, grad, grad_of_gradient):
    if any(ctx.needs_input_grad[1:4]):
        raise NotImplementedError(
            f"{OP}: segmentations alone have a gradient; image, rois and gates need detach()"
        )
    gradient, image, rois, gates = ctx.saved_tensors
    out = 0 if grad is None else grad * gradient
    if grad_of_gradient is not None:  # linear in the segmentations
        images = max(image.shape[0], 1)
        rois = 1 if rois is None else rois[:, None]
        v = grad_of_gradient * rois * (1 if gates is None else gates[:, None])
        filtered = _filter(v, image, ctx.sxy, ctx.srgb, QUALITIES[ctx.quality], transposed=True)
        out = out - 2 / images * rois * filtered
    return out, None, None, None


define(
    "dense_energy(Tensor segmentations, Tensor image, Tensor? rois, Tensor? gates, float sxy,"
    " float srgb, int quality) -> (Tensor energy, Tensor gradient)",
    reference=_energy,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
)
_dense_energy = ops.dense_energy.default
