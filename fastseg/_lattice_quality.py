"""How well a permutohedral lattice approximates the Gaussian: one table for every op."""

from __future__ import annotations

import math
from typing import NamedTuple


class LatticeQuality(NamedTuple):
    """What the lattice ops are given."""

    refine: float
    """Multiplies the features: more vertices, which more passes of the blur must cover."""
    dilation: int
    """Vertices added between those that points touch, see ``permutohedral_lattice``."""
    passes: int
    """Blurs along each axis."""
    symmetric: bool
    """Whether to take the mean of the forward and the reverse order of axes."""
    keeps_integral: bool
    """Whether the kernel's integral is the Gaussian's, or the gain Kraehenbuehl & Koltun's."""

    def gain(self, dimensions: int) -> float:
        """What multiplies the result of the blur, for that many features."""
        d = dimensions
        if not self.keeps_integral:
            return 1 / (1 + 2.0**-d)
        # The lattice has one vertex in sqrt(3/2)^d / sqrt(d + 1) of unrefined feature space, and
        # each pass doubles the sum along each of d + 1 axes.
        vertex = math.sqrt(1.5) ** d / math.sqrt(d + 1) / self.refine**d
        return math.sqrt(2 * math.pi) ** d / (vertex * 2.0 ** (self.passes * (d + 1)))


LATTICE_QUALITY = {
    "compat": LatticeQuality(
        refine=1.0, dilation=0, passes=1, symmetric=False, keeps_integral=False
    ),
    "high": LatticeQuality(refine=1.0, dilation=2, passes=1, symmetric=True, keeps_integral=True),
}
"""By name of the quality; "compat" is Kraehenbuehl & Koltun's lattice."""
