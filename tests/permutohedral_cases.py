"""What the tests of the permutohedral lattice run over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


class LatticeCase(NamedTuple):
    """Random features (B, d, N); a tile of the CPU's holds 8192 points."""

    batch: int
    dimensions: int
    points: int
    refine: float = 1.0
    dilation: int = 0
    spread: float = 2.0

    def features(self, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(self.dimensions)
        shape = (self.batch, self.dimensions, self.points)
        x = torch.randn(shape, generator=generator, dtype=torch.float64) * self.spread
        return x.to(dtype)

    def __str__(self) -> str:
        return "-".join(map(str, self))


CASES = (
    *(LatticeCase(2, d, 99) for d in range(1, 9)),
    *(LatticeCase(1, d, 100, 1.3, dilation) for d in (1, 2, 3, 5) for dilation in (1, 2)),
    LatticeCase(1, 7, 20, 1.0, 1),
    LatticeCase(1, 8, 20, 1.0, 2),
    LatticeCase(3, 1, 1),  # a point alone
    LatticeCase(1, 8, 1),
    LatticeCase(0, 3, 7),  # no image
    LatticeCase(2, 3, 0),  # no point
    LatticeCase(1, 2, 15),
    LatticeCase(1, 3, 16),  # vectors without a rest
    LatticeCase(2, 2, 8193),  # two tiles
    LatticeCase(1, 2, 40001, 1.0, 2),  # an odd last tile
    LatticeCase(1, 5, 256, spread=0.0),  # one simplex
    LatticeCase(1, 5, 256, spread=1e4),  # no two points share one
    LatticeCase(1, 8, 64, spread=3e3),  # keys of more than 64 bits
    LatticeCase(2, 8, 64, 1.0, 1, 3e3),
)


def golden_filter(shared_data):
    """The file of pydensecrf's filter, as tensors."""
    import numpy as np

    file = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    return {name: torch.from_numpy(file[name]) for name in file.files if "filter" in name}
