"""The CUDA construction of permutohedral lattices, run on the CPU (tests/cuda_on_cpu)."""

from __future__ import annotations

import pytest
import torch

from fastseg import reference
from fastseg._core.permutohedral import PermutohedralTensors
from tests.crf.permutohedral_cases import (
    CASES,
    FLOATS,
    LatticeCase,
    assert_format,
    assert_same_lattice,
)
from tests.cuda_on_cpu.build import cuda_home

TILE_POINTS = 128
LATTICES = (
    *(case for case in CASES if case.points < 5000),
    *(LatticeCase(2, 4, points) for points in (127, 128, 129, 192, 257)),  # around tiles' ends
    LatticeCase(1, 5, 3000, spread=0.01),  # vertices with more rows than one thread sorts
    LatticeCase(2, 2, 3001, 1.0, 2, 20.0),  # prefix sums of more than a block
    LatticeCase(3, 3, 200, 1.0, 1, 30.0),
)

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_case = pytest.mark.parametrize("case", LATTICES, ids=str)


def build(case: LatticeCase, dtype=torch.float32) -> PermutohedralTensors:
    return permutohedral_lattice(case.features(dtype), case.refine, case.dilation)


def permutohedral_lattice(*arguments) -> PermutohedralTensors:
    op = torch.ops.fastseg_cuda_on_cpu.permutohedral_lattice
    return PermutohedralTensors(*op(*arguments))


@each_dtype
@each_case
def test_lattice_is_the_references(case, dtype):
    actual = build(case, dtype)
    expected = reference.permutohedral_lattice(case.features(dtype), case.refine, case.dilation)
    assert_same_lattice(actual, expected, case)
    assert_format(actual, case)
    assert len(actual.tile_starts) == case.batch * -(-case.points // TILE_POINTS) + 1


@pytest.mark.parametrize(
    "case",
    [LatticeCase(2, 5, 999), LatticeCase(2, 3, 700, 1.0, 2), LatticeCase(1, 2, 5001, spread=0.1)],
    ids=str,
)
def test_the_order_of_threads_does_not_matter(case, monkeypatch):
    lattice = build(case)
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "forward")
    for a, b in zip(build(case), lattice, strict=True):
        assert torch.equal(a, b)


def test_vertices_are_numbered_by_their_first_entries():
    lattice = build(LatticeCase(2, 3, 1000))
    tiles, d1 = len(lattice.tile_starts) - 1, 4
    seen = lattice.tile_vertices.new_empty(0)
    for t in range(tiles):
        rows = lattice.tile_vertices[lattice.tile_starts[t] : lattice.tile_starts[t + 1]]
        new = rows[~torch.isin(rows, seen)]
        assert torch.equal(new, torch.arange(len(seen), len(seen) + len(new), dtype=torch.int32))
        seen = torch.cat([seen, new])
        image, tile = divmod(t, tiles // 2)
        slots = lattice.slots[image, tile * TILE_POINTS : (tile + 1) * TILE_POINTS].reshape(-1)
        assert slots.numel() % d1 == 0
        first = torch.stack([(slots == row).nonzero()[0, 0] for row in range(len(rows))])
        assert torch.equal(first, first.sort().values)


def test_images_do_not_meet():
    features = LatticeCase(3, 3, 700).features()
    features[1] = features[0]
    together = permutohedral_lattice(features)
    alone = [permutohedral_lattice(f[None]) for f in features]
    assert together.vertex_count.tolist() == [a.vertex_count.item() for a in alone]
    assert together.neighbors.shape[2] == sum(a.neighbors.shape[2] for a in alone)


def test_other_strides():
    features = LatticeCase(2, 3, 501).features()
    wide = torch.zeros(3, 501, 4).permute(2, 0, 1)[::2]
    wide.copy_(features)
    lattices = (permutohedral_lattice(wide), permutohedral_lattice(features))
    for a, b in zip(*lattices, strict=True):
        assert torch.equal(a, b)


def test_points_on_faces():
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(50.0), indexing="ij")
    features = torch.stack([x / 3, y / 3, (x * y) % 7 / 3]).flatten(1)[None]
    lattice = permutohedral_lattice(features)
    assert_same_lattice(
        lattice, reference.permutohedral_lattice(features), LatticeCase(1, 3, 30 * 50)
    )


def test_the_origins_simplex():
    far = torch.full((1, 3, 8), 50.0)
    for points in range(1, 9):
        count = 4 if points % 4 == 0 else 8
        assert permutohedral_lattice(far[..., :points]).vertex_count.item() == count
        assert permutohedral_lattice(far[..., :points], 1.0, 1).vertex_count.item() == 4


# Bad input.


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3, 4), r"features must have shape \(B, d, N\).*got \(3, 4\)"),
        (torch.zeros(1, 2, 4).half(), "float32 or float64"),
        (torch.tensor([[[0.0, torch.nan]]]), "features must be finite, got nan in dimension 0"),
        (torch.tensor([[[0.0], [-torch.inf]]]), "features must be finite, got -inf in dimension 1"),
        (torch.tensor([[[1.0], [3e8]]]), r"features must be smaller, got up to 3e\+08 in dim"),
        (torch.full((1, 3, 2), 3e38), "features must be smaller"),
        (torch.full((1, 3, 2), 1e12, dtype=torch.float64), r"smaller, got up to 1e\+12 in dim"),
    ],
    ids=str,
)
def test_bad_features(features, message):
    for dilation in (0, 1):
        with pytest.raises(RuntimeError, match=f"permutohedral_lattice: .*{message}"):
            permutohedral_lattice(features, 1.0, dilation)


def test_any_point_may_be_bad():
    features = torch.randn(2, 3, 901)
    features[1, 1, 900] = torch.inf  # a later one is not named
    for b, i in ((0, 0), (0, 900), (1, 450)):
        bad = features.clone()
        bad[b, 0, i] = torch.nan
        with pytest.raises(RuntimeError, match="got nan in dimension 0"):
            permutohedral_lattice(bad)


def test_large_features_of_float64_make_a_lattice():
    """Of more than 128 bits a vertex, which the CPU refuses."""
    case = LatticeCase(1, 8, 100, spread=1e6)
    features = case.features(torch.float64)
    expected = reference.permutohedral_lattice(features)
    assert_same_lattice(permutohedral_lattice(features), expected, case)


def test_a_capture_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_ON_CPU_CAPTURES", "1")
    with pytest.raises(RuntimeError, match=r"permutohedral_lattice: .*outside of the capture"):
        permutohedral_lattice(torch.rand(1, 2, 9))
