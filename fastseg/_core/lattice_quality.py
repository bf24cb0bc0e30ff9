"""The names of dense_crf's qualities, and the numbers of those that are computed on a lattice."""

from __future__ import annotations

import math
from typing import NamedTuple

QUALITIES = ("compat", "high", "exact")
"""The names of the qualities; an op takes a name's position in this tuple."""


class LatticeQuality(NamedTuple):
    """The numbers that say how well a permutohedral lattice approximates the Gaussian."""

    refine: float
    """The factor of the features: more vertices, which more passes of the blur must cover."""
    dilation: int
    """The rule by which vertices are added that no point touches, see ``permutohedral_lattice``."""
    passes: int
    """The number of blurs along each axis."""
    symmetric: bool
    """Whether the blur is the mean of the forward and the reverse order of axes."""
    side: float
    """The weight of a neighbour in the blur."""
    keeps_integral: bool
    """Whether the filter's integral is the Gaussian's; else its gain is Kraehenbuehl & Koltun's."""

    def gain(self, dimensions: int) -> float:
        """The factor of the blur's result, for that many features."""
        d = dimensions
        if not self.keeps_integral:
            return 1 / (1 + 2.0**-d)
        # The lattice has one vertex in sqrt(3/2)^d / sqrt(d + 1) of unrefined feature space, and
        # each pass multiplies the sum by 1 + 2 side along each of d + 1 axes.
        vertex = math.sqrt(1.5) ** d / math.sqrt(d + 1) / self.refine**d
        return math.sqrt(2 * math.pi) ** d / (
            vertex * (1 + 2 * self.side) ** (self.passes * (d + 1))
        )


LATTICE_QUALITY = {
    "compat": LatticeQuality(
        refine=1.0, dilation=0, passes=1, symmetric=False, side=0.5, keeps_integral=False
    ),
    "high": LatticeQuality(
        refine=1.0, dilation=2, passes=1, symmetric=True, side=0.45, keeps_integral=True
    ),
}
"""The lattices of the qualities that have one; that of "compat" is Kraehenbuehl & Koltun's.

The blur of "high" is a little narrower than theirs: with 1/2, the interpolation on both ways and
the blur are together wider than the Gaussian, which shows once no mass is lost at missing vertices.
0.45 was the best of a scan over photos at bandwidths of 80/13, 49/5 and 67/3."""
