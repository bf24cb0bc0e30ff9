"""Pixel-adaptive refinement of masks, and its transpose, neighbour by neighbour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.formulas import compute_dtype
from fastseg._core.refinement import check_refinement, neighbor_shifts


def pixel_adaptive_refinement(
    image: Tensor, masks: Tensor, dilations: Sequence[int], iterations: int, variant: str = "par"
) -> Tensor:
    """The op :func:`fastseg.pixel_adaptive_refinement`, for masks of the image's size."""
    op = "fastseg::pixel_adaptive_refinement"
    check_refinement(op, image, "masks", masks, dilations, iterations, variant)
    out = masks.to(compute_dtype(masks.dtype))
    if masks.numel() > 0 and iterations > 0:
        weights = affinities(image.to(out.dtype), dilations, variant)
        shifts = neighbor_shifts(dilations)
        for _ in range(iterations):
            out = sum(w * shifted(out, *s) for w, s in zip(weights, shifts, strict=True))
    return torch.empty_like(masks, memory_format=torch.contiguous_format).copy_(out)


def pixel_adaptive_refinement_backward(
    grad: Tensor, image: Tensor, dilations: Sequence[int], iterations: int, variant: str = "par"
) -> Tensor:
    """Returns the gradient of the masks: the refinement is linear in them, this its transpose."""
    op = "fastseg::pixel_adaptive_refinement_backward"
    check_refinement(op, image, "grad", grad, dilations, iterations, variant)
    out = grad.to(compute_dtype(grad.dtype))
    if grad.numel() > 0 and iterations > 0:
        weights = affinities(image.to(out.dtype), dilations, variant)
        shifts = neighbor_shifts(dilations)
        for _ in range(iterations):
            out = sum(shifted_back(w * out, *s) for w, s in zip(weights, shifts, strict=True))
    return torch.empty_like(grad, memory_format=torch.contiguous_format).copy_(out)


def affinities(image: Tensor, dilations: Sequence[int], variant: str) -> list[Tensor]:
    """Returns the weight of each neighbour, (N, 1, H, W) for one.

    Args:
        image: (N, K, H, W).
        dilations: distances of the neighbours in pixels.
        variant: "par" or "pamr".
    """
    shifts = neighbor_shifts(dilations)
    neighbors = torch.stack([shifted(image, *s) for s in shifts])
    differences = (neighbors - image).abs()
    if variant == "pamr":
        # The published windows of the deviation hold their centre, once for each dilation.
        windows = torch.cat([neighbors, image.expand(len(dilations), *image.shape)])
        logits = -(differences / (1e-8 + 0.1 * windows.std(0))).mean(2, keepdim=True)
        return list(logits.softmax(0))
    logits = -(differences / (neighbors.std(0) + 1e-8) / 0.3).square().mean(2, keepdim=True)
    positions = position_weights(dilations).to(image)
    return [w + p for w, p in zip(logits.softmax(0), positions, strict=True)]


def position_weights(dilations: Sequence[int]) -> Tensor:
    """Returns PAR's weights of the neighbours' distances, float64; their sum is 0.01."""
    shifts = neighbor_shifts(dilations)
    distances = [math.hypot(*s) for s in shifts]
    distances = torch.tensor(distances, dtype=torch.float64, device="cpu")
    return 0.01 * (-(distances / (distances.std() + 1e-8) / 0.3).square()).softmax(0)


def shifted(x: Tensor, rows: int, columns: int) -> Tensor:
    """Returns every pixel's neighbour at that distance; outside the edge pixels repeat.

    Args:
        x: (..., H, W).
        rows: distance down.
        columns: distance to the right.
    """
    for dim, shift in ((-2, rows), (-1, columns)):
        size = x.shape[dim]
        shift = max(1 - size, min(shift, size - 1))
        index = torch.arange(size, device=x.device) + shift
        x = x.index_select(dim, index.clamp(0, size - 1))
    return x


def shifted_back(x: Tensor, rows: int, columns: int) -> Tensor:
    """The transpose of :func:`shifted`: every pixel's value is added to its neighbour."""
    for dim, shift in ((-2, rows), (-1, columns)):
        size = x.shape[dim]
        if shift == 0:
            continue
        distance = min(abs(shift), size - 1)
        inside, moved = (0, distance) if shift > 0 else (distance, 0)
        outside, edge = (size - distance, size - 1) if shift > 0 else (0, 0)
        out = torch.zeros_like(x)
        out.narrow(dim, moved, size - distance).copy_(x.narrow(dim, inside, size - distance))
        out.narrow(dim, edge, 1).add_(x.narrow(dim, outside, distance).sum(dim, keepdim=True))
        x = out
    return x
