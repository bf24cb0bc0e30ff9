"""The mean field of a dense CRF on permutohedral lattices, step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LatticeQuality
from fastseg._core.mean_field_terms import Gaussian, PositionGaussian, Term, terms_of
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

    def lattice_filter(features: Tensor) -> Callable[[Tensor], Tensor]:
        features = features.flatten(2)
        lattice = permutohedral_lattice(features, refine, dilation)[:7]
        lattice_quality = LatticeQuality(refine, dilation, passes, symmetric, side, quality == 1)
        gain = lattice_quality.gain(features.shape[1])

        def shared(v):  # the images' labels are the one lattice's channels
            flat = v.reshape(features.shape[0], -1, v.shape[2])
            out = permutohedral_filter(flat, *lattice, passes, symmetric, False, gain, side)
            return out.view(v.shape)

        return shared

    def filter_of(gaussian: Gaussian) -> tuple[Callable[[Tensor], Tensor], int]:
        """The filter of (B, C, N), and how many images' factors it has."""
        if not isinstance(gaussian, PositionGaussian):
            return lattice_filter(gaussian.features), gaussian.features.shape[0]
        sigma = gaussian.sigma
        if quality == 0:
            return lattice_filter(position_features(sigma, spatial)), 1
        return lambda v: spatial_gaussian_filter(v.unflatten(2, spatial), sigma).flatten(2), 1

    def message_of(term: Term) -> Callable[[Tensor], Tensor]:
        filtered, images = filter_of(term.gaussian)
        total = filtered(unary.new_ones(images, 1, spatial.numel()))
        before, after = normalizers(total, term.normalization)
        return lambda q: cost(after * filtered(before * q), term.compatibility)

    energy = unary.flatten(2)
    logits = -energy
    if logits.numel():
        messages = [message_of(t) for t in terms_of(kernels, compatibility, normalization)]
        for _ in range(iterations):
            q = torch.softmax(logits, 1)
            logits = -energy - sum(message(q) for message in messages)
    if log:
        return torch.log_softmax(logits, 1).reshape(unary.shape).contiguous()
    layout = torch._prims_common.suggest_memory_format(unary)
    return torch.softmax(logits, 1).reshape(unary.shape).contiguous(memory_format=layout)
