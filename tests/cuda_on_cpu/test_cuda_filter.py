"""The CUDA filters of points and pixels, run on the CPU (tests/cuda_on_cpu), and the references."""

from __future__ import annotations

import pytest
import torch

from fastseg._core import extension
from fastseg import reference
from tests.crf.permutohedral_cases import FLOATS, LatticeCase, name_of_change
from tests.cuda_on_cpu.build import cuda_home

ops = torch.ops.fastseg_cuda_on_cpu

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
OPTIONS = ((1, False, False), (2, False, True), (1, True, False), (2, True, True))
# A tile of 8192 points is cut by the CPU's build alone.
CASES = (
    LatticeCase(3, 1, 1),  # a point alone
    LatticeCase(1, 8, 1),
    LatticeCase(2, 2, 63),
    LatticeCase(1, 5, 130, 1.3, 1),
    LatticeCase(2, 8, 67, 1.0, 2),
    LatticeCase(1, 3, 200, spread=0.0),  # all entries in a few rows
    LatticeCase(0, 3, 7),
    LatticeCase(2, 3, 0),
)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def cut(lattice, points):
    """The lattice with its tiles, one for each image, cut into some of that many points."""
    tile_vertices, starts, slots = [], [0], []
    for image, image_slots in enumerate(lattice.slots):
        vertices = lattice.tile_vertices[lattice.tile_starts[image] :][: image_slots.max() + 1]
        for part in image_slots.split(points):
            rows, inverse = part.unique(return_inverse=True)
            slots.append(inverse.int())
            tile_vertices.append(vertices[rows.long()])
            starts.append(starts[-1] + len(rows))
    flat = torch.cat(tile_vertices)
    counts = torch.bincount(flat, minlength=len(lattice.vertex_starts) - 1)
    return lattice._replace(
        slots=torch.cat(slots).view_as(lattice.slots),
        tile_starts=torch.tensor(starts, dtype=torch.int32),
        tile_vertices=flat,
        vertex_rows=flat.argsort(stable=True).int(),
        vertex_starts=torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int(),
    )


def lattice_of(case: LatticeCase, dtype=torch.float32, points: int | None = None):
    lattice = reference.permutohedral_lattice(case.features(dtype), case.refine, case.dilation)
    return cut(lattice, points) if points else lattice


def assert_close(actual, expected):
    """To a few roundings of the largest element."""
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    if expected.numel():
        scale = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(
            actual, expected, rtol=0, atol=200 * torch.finfo(expected.dtype).eps * scale
        )


@each_case
@each_dtype
def test_permutohedral_filter(case, dtype):
    lattice = lattice_of(case, dtype)
    for channels, options in zip((1, 3, 4, 6), OPTIONS, strict=True):
        values = torch.randn(case.batch, channels, case.points, dtype=dtype)
        arguments = (values, *lattice[:7], *options, 0.7, 0.4)
        out = ops.permutohedral_filter(*arguments)
        assert_close(out, reference.permutohedral_filter(*arguments))


@each_case
@each_dtype
def test_permutohedral_filter_backward(case, dtype):
    lattice = lattice_of(case, dtype)
    for channels, options in zip((3, 1, 5, 2), OPTIONS, strict=True):
        grad, values = torch.randn(2, case.batch, channels, case.points, dtype=dtype)
        arguments = (grad, values, *lattice[:7], *options, 0.7, 0.4)
        out = ops.permutohedral_filter_backward(*arguments)
        for a, b in zip(out, reference.permutohedral_filter_backward(*arguments), strict=True):
            assert_close(a, b)


@each_dtype
@pytest.mark.parametrize("channels", [0, 1, 2, 21, 64, 65, 150])
def test_channels(channels, dtype):
    """Several chunks of channels, the last one of one channel or of many."""
    lattice = lattice_of(LatticeCase(2, 3, 141), dtype, points=64)
    grad, values = torch.randn(2, 2, channels, 141, dtype=dtype)
    out = ops.permutohedral_filter(values, *lattice[:7])
    assert_close(out, reference.permutohedral_filter(values, *lattice[:7]))
    out = ops.permutohedral_filter_backward(grad, values, *lattice[:7])
    expected = reference.permutohedral_filter_backward(grad, values, *lattice[:7])
    for a, b in zip(out, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("points", [64, 128, None])
@pytest.mark.parametrize("channels", [1, 3])
def test_tiles(points, channels):
    """Tiles in shared memory or, the largest ones, not; several chunks of entries of each."""
    case = LatticeCase(1, 2, 8300)
    lattice = lattice_of(case, points=points)
    values = torch.randn(1, channels, case.points)
    out = ops.permutohedral_filter(values, *lattice[:7])
    assert_close(out, reference.permutohedral_filter(values, *lattice[:7]))


@pytest.mark.parametrize("points", [64, None])
def test_a_point_that_touches_a_row_twice(points):
    """No simplex does, but the op takes any lattice: such a tile's entries are sorted."""
    lattice = lattice_of(LatticeCase(1, 2, 300), points=points)
    slots = lattice.slots.clone()
    slots[0, 100:130, 1] = slots[0, 100:130, 0]
    values = torch.randn(1, 3, 300)
    arguments = (values, *lattice._replace(slots=slots)[:7])
    assert_close(ops.permutohedral_filter(*arguments), reference.permutohedral_filter(*arguments))


def test_the_order_of_threads_does_not_matter(order, monkeypatch):
    lattice = lattice_of(LatticeCase(2, 3, 300), points=128)
    grad, values = torch.randn(2, 2, 5, 300)

    def results():
        return (
            ops.permutohedral_filter(values, *lattice[:7], 1, True),
            *ops.permutohedral_filter_backward(grad, values, *lattice[:7]),
        )

    expected = results()
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "reverse" if order == "forward" else "forward")
    for a, b in zip(results(), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(not extension.available_simd_levels(), reason="the CPU kernels are not built")
def test_a_lattice_that_the_cpu_built():
    features, values = torch.randn(2, 3, 1001), torch.randn(2, 21, 1001)
    lattice = torch.ops.fastseg.permutohedral_lattice(features)[:7]
    out = ops.permutohedral_filter(values, *lattice)
    assert_close(out, torch.ops.fastseg.permutohedral_filter(values, *lattice))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": lambda t: t + 99}, "slots must be"),
        ({"slots": lambda t: t - 1}, "slots must be"),
        ({"tile_starts": lambda t: t - 1}, "tile_starts must ascend"),
        ({"tile_starts": lambda t: t.clamp(max=9)}, "(tile_starts|slots) must"),
        ({"tile_starts": lambda t: t * torch.tensor([1, 99, 1])}, "tile_starts must ascend"),
        ({"tile_vertices": lambda t: t + 9999}, "tile_vertices must be"),
        ({"vertex_rows": lambda t: t - 1}, "vertex_rows must be"),
        ({"vertex_starts": lambda t: t.flip(0)}, "vertex_starts must ascend"),
        ({"vertex_starts": lambda t: t + 1}, "vertex_starts must ascend"),
        ({"neighbors": lambda t: t + 1}, "neighbors must be"),
    ],
    ids=name_of_change,
)
def test_a_bad_lattice_stops_the_filter(change, message):
    lattice = lattice_of(LatticeCase(2, 3, 10))
    bad = {name: value(getattr(lattice, name)).int() for name, value in change.items()}
    for op, values in (
        (ops.permutohedral_filter, [torch.zeros(2, 3, 10)]),
        (ops.permutohedral_filter_backward, [torch.zeros(2, 3, 10)] * 2),
    ):
        with pytest.raises(RuntimeError, match=f"permutohedral_filter: {message}"):
            op(*values, *lattice._replace(**bad)[:7])


# The exact Gaussian of the pixel grid.

GAUSSIANS = [
    # (B, C, *spatial), sigma
    ((2, 3, 17), (2.0,)),
    ((1, 1, 1), (3.0,)),
    ((2, 5, 13, 19), (3.0, 1.5)),
    ((1, 2, 9, 64), (50.0, 300.0)),  # taps end with the axes
    ((1, 1, 8, 700), (1e-3, 80.0)),  # more taps than a tile in shared memory may have
    ((1, 1, 700, 12), (80.0, 1e-3)),
    ((1, 1, 130, 80), (2.0, 3.0)),  # several tiles along the axes and across
    ((2, 4, 1, 33), (2.0, 2.0)),
    ((2, 3, 5, 12, 11), (0.7, 2.0, 3.0)),
    ((2, 3, 0, 5), (1.0, 1.0)),
]


@each_dtype
@pytest.mark.parametrize(("shape", "sigma"), GAUSSIANS, ids=str)
def test_spatial_gaussian_filter(shape, sigma, dtype):
    values = torch.randn(shape, dtype=dtype)
    for derivative in range(-1, len(sigma)):
        bandwidths = torch.tensor(sigma, dtype=FLOATS[derivative % 2])
        out = ops.spatial_gaussian_filter(values, bandwidths, derivative)
        assert_close(out, reference.spatial_gaussian_filter(values, bandwidths, derivative))


@each_dtype
@pytest.mark.parametrize("channels", [2, 3, 21, 33])
def test_spatial_gaussian_filter_channels_last(channels, dtype):
    values, sigma = torch.randn(2, channels, 11, 45, dtype=dtype), torch.tensor([1.5, 3.0])
    pixels_first = values.contiguous(memory_format=torch.channels_last)
    for derivative in (-1, 1):
        out = ops.spatial_gaussian_filter(pixels_first, sigma, derivative)
        expected = reference.spatial_gaussian_filter(values, sigma, derivative)
        assert out.stride() == pixels_first.stride()
        assert_close(out.contiguous(), expected)


def test_nan_and_inf_reach_as_far_as_the_taps():
    sigma = torch.tensor([0.5, 0.5])  # two taps on each side
    values = torch.zeros(1, 2, 9, 21)
    values[0, 0, 4, 10], values[0, 1, 0, 0] = torch.nan, torch.inf
    expected = reference.spatial_gaussian_filter(values, sigma)
    for x in (values, values.contiguous(memory_format=torch.channels_last)):
        out = ops.spatial_gaussian_filter(x, sigma)
        torch.testing.assert_close(out, expected, equal_nan=True, rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf])
def test_a_bad_bandwidth_stops_the_filter(bad):
    for sigma in (torch.tensor([bad, 1.0]), torch.tensor([1.0, bad]).double()):
        with pytest.raises(RuntimeError, match="sigma must be positive and finite"):
            ops.spatial_gaussian_filter(torch.zeros(1, 1, 3, 3), sigma)
