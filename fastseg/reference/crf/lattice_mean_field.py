"""The mean field of a dense CRF on permutohedral lattices, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LatticeQuality
from fastseg._core.pairwise import position_features
from fastseg.reference.crf.mean_field import cost, normalizers
from fastseg.reference.crf.permutohedral_filter import permutohedral_filter
from fastseg.reference.crf.permutohedral_lattice import permutohedral_lattice
from fastseg.reference.crf.spatial_gaussian_filter import spatial_gaussian_filter


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
    log: bool = False,
) -> Tensor:
    """``torch.ops.fastseg.lattice_mean_field``: see fastseg/ops/crf/lattice_mean_field.py."""
    spatial = unary.shape[2:]

    def filter_of(kernel):
        if kernel.dim() == 1 and quality == 1:
            return lambda v: spatial_gaussian_filter(v.unflatten(2, spatial), kernel).flatten(2)
        features = (position_features(kernel, spatial) if kernel.dim() == 1 else kernel).flatten(2)
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
        before, after = normalizers(total, normalization)
        return lambda q: cost(after * filtered(before * q), mu)

    energy = unary.flatten(2)
    logits = -energy
    if logits.numel():
        terms = zip(kernels, compatibility, normalization, strict=True)
        messages = [message_of(*term) for term in terms]
        for _ in range(iterations):
            q = torch.softmax(logits, 1)
            logits = -energy - sum(message(q) for message in messages)
    if log:
        return torch.log_softmax(logits, 1).reshape(unary.shape).contiguous()
    layout = torch._prims_common.suggest_memory_format(unary)
    return torch.softmax(logits, 1).reshape(unary.shape).contiguous(memory_format=layout)
