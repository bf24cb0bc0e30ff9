"""The op fastseg.pixel_adaptive_refinement and the op of its gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg import reference
from fastseg._core.library import call, define
from fastseg._core.refinement import check_refinement
from fastseg._core.tensor_checks import check_tensors
from fastseg._core.vmap import by_batch

ops = torch.ops.fastseg
OP = "fastseg::pixel_adaptive_refinement"
DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances of the neighbours in the published experiments."""


def pixel_adaptive_refinement(
    image: Tensor,
    masks: Tensor,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    variant: str = "par",
) -> Tensor:
    """Refines masks by an image: each pixel takes on the mean of the neighbours that look like it.

    ``masks_i <- sum_n w_in masks_n``, ``iterations`` times, over a pixel's eight neighbours at each
    of the dilations, without the pixel itself. Outside the image its edge pixels repeat. The
    weights are a softmax over the neighbours, of the mean over the image's K channels of

    - "par": ``-(|I_i - I_n| / (s + 1e-8) / 0.3)^2``, to which is added 0.01 times the softmax of
      ``-(d_n / (s_d + 1e-8) / 0.3)^2``, d the distances of the neighbours: PAR of Ru et al.,
      "Learning Affinity from Attention", CVPR 2022.
    - "pamr": ``-|I_i - I_n| / (1e-8 + 0.1 s)``: PAMR of Araslanov and Roth, "Single-Stage Semantic
      Segmentation from Image Labels", CVPR 2020.

    s is the channel's unbiased standard deviation over the neighbours, for PAMR with the pixel
    itself among them once for each dilation. The results are those of the published modules, which
    keep a copy of the masks for each neighbour; here the weights alone are kept, of one image at a
    time. Everything is computed in float32, or in float64 for masks of that dtype. Deterministic,
    for any number of threads.

    Args:
        image: (N, K, H, W), float32, float64, float16 or bfloat16.
        masks: (N, C, h, w), of one of these dtypes too. Masks of another size than the image are
            first resized to it, bilinear with ``align_corners=True``.
        dilations: distances of the neighbours in pixels, positive; at most 64 of them on a GPU.
        iterations: how often the weights are applied.
        variant: "par" or "pamr".

    Returns:
        The refined masks (N, C, H, W), of the masks' dtype, contiguous. Differentiable any number
        of times in the masks, not in the image.

    Raises:
        TypeError: a value that is no tensor.
        RuntimeError: arguments of other shapes, dtypes or values.
        NotImplementedError: the image needs a gradient; pass ``image.detach()``.
    """
    check_tensors(OP, image=image, masks=masks)
    if image.dim() == 4 and masks.dim() == 4 and 0 not in (*masks.shape, *image.shape):
        size = image.shape[2:]
        if masks.shape[2:] != size and masks.is_floating_point():
            masks = F.interpolate(masks, size, mode="bilinear", align_corners=True)
    return call(_pixel_adaptive_refinement, (image, masks), dilations, iterations, variant)


def _fake(image, masks, dilations, iterations, variant="par"):
    check_refinement(OP, image, "masks", masks, dilations, iterations, variant)
    return torch.empty_like(masks, memory_format=torch.contiguous_format)


def _setup_context(ctx, inputs, output):
    image, _, *ctx.options = inputs
    if ctx.needs_input_grad[0]:
        raise NotImplementedError(f"{OP} has no gradient for image; pass image.detach()")
    ctx.save_for_backward(image)


def _backward(ctx, grad):
    (image,) = ctx.saved_tensors
    return None, call(ops.pixel_adaptive_refinement_backward.default, (grad, image), *ctx.options)


define(
    "pixel_adaptive_refinement(Tensor image, Tensor masks, int[] dilations, int iterations,"
    ' str variant="par") -> Tensor',
    reference=reference.pixel_adaptive_refinement,
    fake=_fake,
    setup_context=_setup_context,
    backward=_backward,
    vmap=by_batch(0, 1),
)
_pixel_adaptive_refinement = ops.pixel_adaptive_refinement.default


def _fake_backward(grad, image, dilations, iterations, variant="par"):
    check_refinement(f"{OP}_backward", image, "grad", grad, dilations, iterations, variant)
    return torch.empty_like(grad, memory_format=torch.contiguous_format)


def _setup_context_backward(ctx, inputs, output):
    _, image, *ctx.options = inputs
    if ctx.needs_input_grad[1]:
        raise NotImplementedError(f"{OP}_backward has no gradient for image; pass image.detach()")
    ctx.save_for_backward(image)


def _backward_backward(ctx, grad):
    (image,) = ctx.saved_tensors
    return call(_pixel_adaptive_refinement, (image, grad), *ctx.options), None


define(
    "pixel_adaptive_refinement_backward(Tensor grad, Tensor image, int[] dilations, int iterations,"
    ' str variant="par") -> Tensor',
    reference=reference.pixel_adaptive_refinement_backward,
    fake=_fake_backward,
    setup_context=_setup_context_backward,
    backward=_backward_backward,
    vmap=by_batch(0, 1),
)
