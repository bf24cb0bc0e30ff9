"""The bilateral filter on a permutohedral lattice that serves one filtering."""

from __future__ import annotations

from torch import Tensor

from fastseg._core.pairwise import bilateral_features
from fastseg.reference.crf.permutohedral_filter import permutohedral_filter
from fastseg.reference.crf.permutohedral_lattice import permutohedral_lattice


def bilateral_filter(
    values: Tensor,
    image: Tensor,
    sxy: float,
    srgb: float,
    refine: float = 1.0,
    dilation: int = 0,
    passes: int = 1,
    symmetric: bool = False,
    reverse: bool = False,
    gain: float = 1.0,
    side: float = 0.5,
) -> Tensor:
    """``torch.ops.fastseg.bilateral_filter``: see fastseg/ops/crf/bilateral_filter.py."""
    if values.numel() == 0:
        return values.new_empty(values.shape)
    features = bilateral_features("bilateral_filter", image, sxy, srgb, values.dtype).flatten(2)
    lattice = permutohedral_lattice(features, refine, dilation)[:7]
    out = permutohedral_filter(values.flatten(2), *lattice, passes, symmetric, reverse, gain, side)
    return out.view(values.shape)
