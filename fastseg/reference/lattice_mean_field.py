"""The mean field of a dense CRF on permutohedral lattices, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._lattice_quality import LatticeQuality
from fastseg.reference.permutohedral_filter import permutohedral_filter
from fastseg.reference.permutohedral_lattice import permutohedral_lattice
from fastseg.reference.spatial_gaussian_filter import spatial_gaussian_filter

BEFORE, AFTER, SYMMETRIC = 1, 2, 3


def position_features(sigma: Tensor, spatial: Sequence[int]) -> Tensor:
    """Positions over bandwidths, (1, axes, N), in the order that pydensecrf's lattice has.

    That is x, y in images, but z, y, x in volumes.

    Args:
        sigma: (axes,) in the order of the axes.
        spatial: (H, W) or (D, H, W).
    """
    axes = [torch.arange(n, dtype=sigma.dtype, device=sigma.device) for n in spatial]
    planes = [p / s for p, s in zip(torch.meshgrid(*axes, indexing="ij"), sigma, strict=True)]
    return torch.stack(planes[::-1] if len(planes) == 2 else planes).flatten(1)[None]


def lattice_mean_field(
    unary: Tensor,
    kernels: Sequence[Tensor],
    compatibility: Sequence[Tensor],
    normalization: Sequence[int],
    iterations: int,
    quality: int,
    refine: float = 1.0,
    dilation: int = 0,
    passes: int = 1,
    symmetric: bool = False,
    side: float = 0.5,
) -> Tensor:
    """``torch.ops.fastseg.lattice_mean_field``: see fastseg/ops/lattice_mean_field.py."""
    spatial = unary.shape[2:]

    def filter_of(kernel):
        if kernel.dim() == 1 and quality == 1:
            return lambda v: spatial_gaussian_filter(v.unflatten(2, spatial), kernel).flatten(2)
        features = position_features(kernel, spatial) if kernel.dim() == 1 else kernel.flatten(2)
        lattice = permutohedral_lattice(features, refine, dilation)[:7]
        quality_of = LatticeQuality(refine, dilation, passes, symmetric, side, quality == 1)
        gain = quality_of.gain(features.shape[1])

        def shared(v):  # the images' labels are the one lattice's channels
            flat = v.reshape(features.shape[0], -1, v.shape[2])
            out = permutohedral_filter(flat, *lattice, passes, symmetric, False, gain, side)
            return out.view(v.shape)

        return shared

    def message_of(kernel, mu, normalization):
        filtered = filter_of(kernel)
        images = kernel.shape[0] if kernel.dim() > 1 else 1
        total = filtered(unary.new_ones(images, 1, spatial.numel()))
        before = after = torch.ones_like(total)
        if normalization == SYMMETRIC:
            before = after = 1 / torch.sqrt(total + 1e-20)
        elif normalization == BEFORE:
            before = 1 / (total + 1e-20)
        elif normalization == AFTER:
            after = 1 / (total + 1e-20)

        def message(q):
            f = after * filtered(before * q)
            if mu.dim() == 0:  # Potts: equal labels gain mu
                return -mu * f
            return mu[:, None] * f if mu.dim() == 1 else mu @ f

        return message

    energy = unary.flatten(2)
    q = torch.softmax(-energy, 1)
    if q.numel():
        terms = zip(kernels, compatibility, normalization, strict=True)
        messages = [message_of(*term) for term in terms]
        for _ in range(iterations):
            q = torch.softmax(-energy - sum(message(q) for message in messages), 1)
    layout = torch._prims_common.suggest_memory_format(unary)
    return q.view(unary.shape).contiguous(memory_format=layout)
