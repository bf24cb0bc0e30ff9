"""What the tests of the permutohedral lattice run over."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastseg._core.permutohedral import PermutohedralTensors, tile_points
from fastseg.reference.crf.permutohedral_filter import vertices_of_points

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


def vertices(lattice: PermutohedralTensors) -> Tensor:
    """The vertices of each point's simplex."""
    return vertices_of_points(lattice.slots, lattice.tile_starts, lattice.tile_vertices)


def assert_same_lattice(
    actual: PermutohedralTensors, lattice: PermutohedralTensors, case: LatticeCase
) -> None:
    """Vertices are numbered otherwise; points say which is which, and the blur tells the rest."""
    assert actual.vertex_count.tolist() == lattice.vertex_count.tolist()
    assert actual.slots.shape == lattice.slots.shape
    assert actual.neighbors.shape == lattice.neighbors.shape
    assert torch.equal(actual.barycentric, lattice.barycentric)
    m = actual.neighbors.shape[2]
    name = torch.full((m + 1,), -1)
    name[vertices(actual).flatten()] = vertices(lattice).flatten()
    assert torch.equal(name[vertices(actual)], vertices(lattice))
    touched = name >= 0
    assert name[touched].unique().numel() == touched.sum()
    # A vertex without points has the name of the vertex that it is steps from.
    for _ in range(3):
        for axis in range(case.dimensions + 1):
            for side in (0, 1):
                neighbor = actual.neighbors[axis, side].long()
                at = (name[:m] >= 0) & (neighbor < m) & (name[neighbor] < 0)
                name[neighbor[at]] = lattice.neighbors[axis, side].long()[name[:m][at]]
    name[m] = m
    # Only the origin's simplex may be away from all others.
    unnamed = int((name < 0).sum())
    pads = case.points % 4 > 0 and case.dilation == 0
    assert unnamed <= (case.batch * (case.dimensions + 1) if pads else 0)
    assert name.unique().numel() == m + 1 - max(unnamed - 1, 0)
    known = name[:m] >= 0
    assert torch.equal(
        name[actual.neighbors.long()][..., known],
        lattice.neighbors.long().index_select(2, name[:m][known]),
    )


def assert_format(lattice: PermutohedralTensors, case: LatticeCase) -> None:
    """What holds for every lattice, by whomever it was built."""
    m, r = lattice.neighbors.shape[2], len(lattice.tile_vertices)
    starts = lattice.tile_starts.long()
    tiles = len(starts) - 1
    assert starts[0] == 0
    assert starts[-1] == r
    if case.batch and case.points:
        assert tiles % case.batch == 0
        per_image = tiles // case.batch
        assert -(-case.points // tile_points(case.points, per_image)) == per_image
    for t in range(tiles):
        rows = lattice.tile_vertices[starts[t] : starts[t + 1]]
        assert rows.unique().numel() == len(rows) > 0
    order = lattice.tile_vertices.argsort(stable=True)
    assert torch.equal(lattice.vertex_rows.long(), order)
    counts = torch.bincount(lattice.tile_vertices, minlength=m)
    assert torch.equal(lattice.vertex_starts.long()[1:], counts.cumsum(0))
    assert lattice.vertex_starts[0] == 0
    for back, forward in lattice.neighbors.long():
        for there, again in ((back, forward), (forward, back)):
            has = there < m
            assert torch.equal(again[there[has]], torch.arange(m)[has])
    # Each image's vertices are contiguous.
    of_points = vertices(lattice).flatten(1)
    if case.points:
        assert bool((of_points.amax(1)[:-1] < of_points.amin(1)[1:]).all())


def name_of_change(parameter) -> str:
    """The name of a parameter: the argument that a change is of, or a message's beginning."""
    return next(iter(parameter)) if isinstance(parameter, dict) else str(parameter)[:40]


def golden_filter(shared_data):
    """The file of pydensecrf's filter, as tensors."""
    import numpy as np

    file = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    return {name: torch.from_numpy(file[name]) for name in file.files if "filter" in name}
