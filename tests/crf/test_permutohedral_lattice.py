"""The permutohedral lattice: against its reference, pydensecrf's vertex counts, its own rules."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import fastseg
from fastseg import reference
from fastseg._core.permutohedral import barycentric_backward
from fastseg.ops.crf.permutohedral_lattice import permutohedral_lattice
from tests.crf.permutohedral_cases import (
    CASES,
    FLOATS,
    LatticeCase,
    assert_format,
    assert_same_lattice,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def build(case, dtype=torch.float32):
    return permutohedral_lattice(case.features(dtype), case.refine, case.dilation)


def expected(case, dtype=torch.float32):
    return reference.permutohedral_lattice(case.features(dtype), case.refine, case.dilation)


@each_dtype
@each_case
def test_lattice_is_the_references(case, dtype, simd_level):
    actual = build(case, dtype)
    assert actual.vertex_count.device.type == "cpu"
    assert_same_lattice(actual, expected(case, dtype), case)


@each_case
def test_format(case, simd_level):
    for lattice in (build(case), expected(case)):
        assert_format(lattice, case)


@each_dtype
@each_case
def test_weights_are_those_of_a_point_in_its_simplex(case, dtype):
    weights = build(case, dtype).barycentric
    precision = torch.finfo(dtype).eps * max(1, case.spread) * 64
    torch.testing.assert_close(
        weights.sum(2), torch.ones_like(weights[..., 0]), rtol=0, atol=precision
    )
    assert bool((weights > -precision).all())


def test_dilation():
    """Vertices only appear: those that points touch, then those that join, then all neighbours."""
    sizes = [
        build(LatticeCase(1, 4, 200, 1.0, dilation)).neighbors.shape[2] for dilation in (0, 2, 1)
    ]
    assert sizes == sorted(set(sizes))
    one = LatticeCase(1, 3, 4, spread=0.0)
    assert build(one).neighbors.shape[2] == 4
    # A simplex of 4 vertices has 8 neighbours each, of which they share some.
    assert build(one._replace(dilation=1)).neighbors.shape[2] == 24


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_matter(threads):
    case = LatticeCase(3, 4, 30011, 1.0, 2)
    lattice = build(case)
    torch.set_num_threads(threads)
    for a, b in zip(build(case), lattice, strict=True):
        assert torch.equal(a, b)


def test_simd_levels_agree(simd_level):
    """The simplex of a point that lies on a face, too: pixel positions often do."""
    y, x = torch.meshgrid(torch.arange(90.0), torch.arange(130.0), indexing="ij")
    features = torch.stack([x / 3, y / 3, (x * y) % 7 / 3]).flatten(1)[None]
    lattice = permutohedral_lattice(features)
    rest = reference.permutohedral_lattice(features)
    assert torch.equal(lattice.barycentric, rest.barycentric)
    assert lattice.vertex_count.tolist() == rest.vertex_count.tolist()


def test_other_strides():
    case = LatticeCase(2, 3, 501)
    features = case.features()
    wide = torch.zeros(3, 501, 4).permute(2, 0, 1)[::2]
    wide.copy_(features)
    expanded = features[:1].expand(3, -1, -1)
    for given in (wide, expanded):
        for a, b in zip(
            permutohedral_lattice(given), permutohedral_lattice(given.contiguous()), strict=True
        ):
            assert torch.equal(a, b)


def test_images_do_not_meet():
    features = LatticeCase(3, 3, 700).features()
    features[1] = features[0]
    together = permutohedral_lattice(features)
    alone = [permutohedral_lattice(f[None]) for f in features]
    assert together.vertex_count.tolist() == [a.vertex_count.item() for a in alone]
    assert together.neighbors.shape[2] == sum(a.neighbors.shape[2] for a in alone)


# pydensecrf.


def grid_features(image, sigma, color):
    """As pydensecrf's: float32 positions and colours, each by one division."""
    h, w = image.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    planes = [x.ravel() / np.float32(sigma), y.ravel() / np.float32(sigma)]
    if color is not None:
        planes += list(image.reshape(-1, 3).T.astype(np.float32) / np.float32(color))
    return torch.from_numpy(np.stack(planes).astype(np.float32))


@pytest.mark.parametrize(
    ("name", "sigma", "bilateral"), [("A", 3, (80, 13)), ("B", 3, (49, 5)), ("C", 1, (67, 3))]
)
def test_vertex_counts_are_pydensecrfs(name, sigma, bilateral, shared_data, simd_level):
    file = np.load(shared_data("golden", "voc_160x120_21labels.npz"))
    counts = [
        fastseg.PermutohedralLattice(grid_features(file["image"], *parameters)).num_vertices
        for parameters in ((sigma, None), bilateral)
    ]
    assert counts == file[f"{name}_lattice_vertices"].tolist()


def test_the_origins_simplex_where_pydensecrf_has_it():
    far = torch.full((1, 3, 8), 50.0)
    for points in range(1, 9):
        count = 4 if points % 4 == 0 else 8
        assert permutohedral_lattice(far[..., :points]).vertex_count.item() == count
        lattice = permutohedral_lattice(far[..., :points], dilation=1)
        assert lattice.vertex_count.item() == 4


# Gradient.


@pytest.mark.parametrize("dimensions", range(1, 9))
def test_gradient_of_the_weights(dimensions):
    case = LatticeCase(2, dimensions, 5)
    features = case.features(torch.float64).requires_grad_()

    def weights(f):
        return permutohedral_lattice(f, 1.2).barycentric

    assert torch.autograd.gradcheck(weights, features)
    grad = torch.randn(2, 5, dimensions + 1, dtype=torch.float64)
    (actual,) = torch.autograd.grad(weights(features), features, grad)
    assert torch.equal(actual, barycentric_backward(features, 1.2, grad))


CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


@pytest.mark.parametrize("case", [LatticeCase(2, 3, 10), LatticeCase(1, 5, 33, 1.1, 2)], ids=str)
def test_opcheck(case):
    """opcheck's fourth test adds up integer and float outputs, which fails."""
    op = torch.ops.fastseg.permutohedral_lattice.default
    for grad in (False, True):
        features = case.features().requires_grad_(grad)
        torch.library.opcheck(op, (features, case.refine, case.dilation), test_utils=CHECKS)


def test_compile():
    """Sizes that depend on the data are symbols."""

    def weights(features):
        lattice = permutohedral_lattice(features * 2)
        return lattice.barycentric, lattice.neighbors + 1

    compiled = torch.compile(weights, fullgraph=True, backend="aot_eager")
    features = LatticeCase(2, 3, 50).features().requires_grad_()
    grad = torch.randn(2, 50, 4)
    results = []
    for function in (compiled, weights):
        out, neighbors = function(features)
        results.append((out, neighbors, torch.autograd.grad(out, features, grad)[0]))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


# Bad input.


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.zeros(3, 4), r"features must have shape \(B, d, N\).*got \(3, 4\)"),
        (torch.zeros(1, 9, 4), "d from 1 to 8"),
        (torch.zeros(1, 0, 4), "d from 1 to 8"),
        (torch.zeros(1, 2, 4).half(), "float32 or float64"),
        (torch.zeros(1, 2, 4).int(), "float32 or float64"),
        (torch.tensor([[[0.0, torch.nan]]]), "features must be finite, got nan in dimension 0"),
        (torch.tensor([[[0.0], [-torch.inf]]]), "features must be finite, got -inf in dimension 1"),
        (torch.tensor([[[1.0], [3e8]]]), r"features must be smaller, got up to 3e\+08 in dim"),
        (torch.full((1, 3, 2), 3e38), "features must be smaller"),
    ],
    ids=str,
)
def test_bad_features(features, message, simd_level):
    for function in (permutohedral_lattice, reference.permutohedral_lattice):
        with pytest.raises(RuntimeError, match=f"permutohedral_lattice: .*{message}"):
            function(features)


@pytest.mark.parametrize(
    ("refine", "dilation", "message"), [(1.0, 3, "dilation must be"), (1.0, -1, "dilation must be"),
    (0.0, 0, "refine must be"), (-1.0, 0, "refine must be"), (torch.nan, 0, "refine must be")]
)  # fmt: skip
def test_bad_options(refine, dilation, message):
    for function in (permutohedral_lattice, reference.permutohedral_lattice):
        with pytest.raises(RuntimeError, match=message):
            function(torch.zeros(1, 2, 4), refine, dilation)


def test_any_point_may_be_bad():
    features = torch.randn(2, 3, 9001)
    for b, i in ((0, 0), (1, 8191), (1, 9000)):
        bad = features.clone()
        bad[b, 2, i] = torch.nan
        with pytest.raises(RuntimeError, match="got nan in dimension 2"):
            permutohedral_lattice(bad)


def test_keys_beyond_128_bits_are_refused():
    features = torch.randn(1, 8, 100, dtype=torch.float64) * 1e6
    with pytest.raises(RuntimeError, match="of which 128 are there"):
        permutohedral_lattice(features)


def test_python_threads():
    cases = [LatticeCase(1, 2 + i % 4, 3000 + i) for i in range(8)]
    lattices = [build(case) for case in cases]

    def check(i):
        for _ in range(5):
            for a, b in zip(build(cases[i]), lattices[i], strict=True):
                assert torch.equal(a, b)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(8)))
