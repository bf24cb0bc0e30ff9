"""The dense energy of soft segmentations, and the gradient that is published with it."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseg._core.lattice_quality import LATTICE_QUALITY, QUALITIES
from fastseg._core.pairwise import bilateral_features
from fastseg.reference.crf.bilateral_filter import bilateral_filter
from fastseg.reference.crf.mean_field import gaussian_sums


def dense_energy(
    segmentations: Tensor,
    image: Tensor,
    rois: Tensor | None,
    gates: Tensor | None,
    sxy: float,
    srgb: float,
    quality: int,
) -> tuple[Tensor, Tensor]:
    """``torch.ops.fastseg.dense_energy``: see fastseg/ops/crf/dense_energy.py."""
    batch, _, h, w = segmentations.shape
    one = segmentations.new_ones(batch, h, w)
    rois = (one if rois is None else rois)[:, None]
    gates = (one if gates is None else gates)[:, None]
    s = rois * segmentations
    if s.numel() == 0:
        filtered = torch.zeros_like(s)
    elif QUALITIES[quality] == "exact":
        features = bilateral_features("dense_energy", image, sxy, srgb, s.dtype)
        filtered = gaussian_sums(s.flatten(2), features.flatten(2)).view(s.shape)
    else:
        lattice = LATTICE_QUALITY[QUALITIES[quality]]
        gain = lattice.gain(2 + image.shape[1])
        shape = lattice.refine, lattice.dilation, lattice.passes, lattice.symmetric
        filtered = bilateral_filter(s, image, sxy, srgb, *shape, False, gain, lattice.side)
    images = max(batch, 1)
    energy = -(s * gates * filtered).sum() / images
    gradient = -2 * rois * gates * filtered / images
    return energy, gradient.contiguous()
