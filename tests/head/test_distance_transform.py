"""The distance transform: all pairs of elements, the reference, scipy where it is, and torch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.export import Dim, export
from torch.func import vmap

import fastseg
from fastseg import reference

op = torch.ops.fastseg.distance_transform
pytestmark = pytest.mark.usefixtures("one_thread")
MASKS = (
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
SPACINGS = {1: (1.0, 0.25), 2: (1.0, 2.5, (3.0, 1.0)), 3: (1.0, (1.0, 0.5, 0.5), (2.0, 3.0, 0.7))}
# Short of a vector, beyond one, beyond a strip of rows, and strips of planes.
SIZES = (
    *((1,), (7,), (16,), (100,)),
    *((1, 1), (5, 3), (1, 40), (40, 1), (17, 33), (70, 18), (200, 5)),
    *((1, 1, 1), (4, 6, 5), (2, 17, 18), (70, 3, 4), (5, 20, 37)),
)


def masks(*size: int, batch: int = 3) -> Tensor:
    """Images from nearly all zeros to nearly none, with thin and thick objects, two of one kind."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.rand(batch, *size, generator=generator) < p for p in (0.1, 0.6, 0.97)]
    sparse = torch.ones(batch, *size, dtype=torch.bool)
    for k in range(batch):
        sparse[(k, *(torch.randint(n, (), generator=generator).item() for n in size))] = False
    rows = sparse.clone()
    rows[..., size[-1] // 2] = False
    none = torch.stack([torch.zeros_like(sparse[0])] * batch)
    return torch.stack([*found, sparse, rows, none, ~none])


def of_all_pairs(image: Tensor, spacing) -> Tensor:
    """Squared distances in float64, from each element to each zero."""
    steps = torch.tensor(spacing, dtype=torch.float64)
    places = torch.cartesian_prod(*map(torch.arange, image.shape)).view(-1, image.dim()).double()
    zeros = places[image.flatten() == 0]
    d2 = torch.full((image.numel(),), math.inf, dtype=torch.float64)
    for place in zeros:
        d2 = torch.minimum(d2, ((places - place) * steps).square().sum(-1))
    return d2.view(image.shape)


def axes(spacing, dims: int) -> list[float]:
    return [float(spacing)] * dims if isinstance(spacing, (int, float)) else list(spacing)


@pytest.mark.parametrize("size", [s for s in SIZES if math.prod(s) < 1300], ids=str)
def test_all_pairs(size, simd_level):
    for spacing in SPACINGS[len(size)]:
        mask = masks(*size, batch=1)
        actual = fastseg.distance_transform(
            mask, len(size), spacing=spacing, squared=True, dtype=torch.float64
        )
        steps = axes(spacing, len(size))
        expected = torch.stack([of_all_pairs(m[0], steps) for m in mask])[:, None]
        torch.testing.assert_close(actual, expected, rtol=1e-14, atol=0)
        by_reference = reference.distance_transform(mask, steps, True, True)
        torch.testing.assert_close(by_reference, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("squared", [False, True])
def test_reference(size, squared, simd_level):
    for spacing, dtype in itertools.product(SPACINGS[len(size)], (torch.float32, torch.float64)):
        mask = masks(*size)
        actual = fastseg.distance_transform(
            mask, len(size), spacing=spacing, squared=squared, dtype=dtype
        )
        steps = axes(spacing, len(size))
        expected = reference.distance_transform(mask, steps, squared, dtype == torch.float64)
        exact = spacing == 1.0 and (squared or dtype == torch.float32)
        rounding = 0 if exact else 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(actual, expected, rtol=rounding, atol=0)
        assert actual.is_contiguous()


def lines_of_one_zero(size: int, spacing: float = 1.0) -> tuple[Tensor, Tensor]:
    """Lines, each with one zero, and the steps to it."""
    zeros = torch.tensor([0, 1, size // 3, size - 17, size - 1])
    places = torch.arange(size)
    steps = places - zeros[:, None]
    return steps != 0, steps.abs().double()


@pytest.mark.parametrize("size", [32_735, 32_736, 40_000])
@pytest.mark.parametrize("spacing", [1.0, 0.5])
def test_lines_at_the_limit_of_integers(size, spacing, simd_level):
    """Squares that int32 just holds, and those that it does not."""
    mask, steps = lines_of_one_zero(size)
    for image in (mask[:, None], mask[:, :, None]):  # (1, size) and (size, 1)
        squares = fastseg.distance_transform(
            image, spacing=spacing, squared=True, dtype=torch.float64
        )
        assert torch.equal(squares.flatten(1), (steps * spacing).square())
        distances = fastseg.distance_transform(image, spacing=spacing)
        assert torch.equal(distances.flatten(1), (steps * spacing).float())
    alone = fastseg.distance_transform(torch.ones(1, size))
    assert alone.isinf().all()


def test_objects_whose_zeros_are_far_from_each_other(simd_level):
    """Long searches: a parabola under which all others lie, and one above every other element."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(4, 130, 150, dtype=torch.bool)
    for k, zeros in enumerate((1, 3, 30, 200)):
        y = torch.randint(130, (zeros,), generator=generator)
        x = torch.randint(150, (zeros,), generator=generator)
        mask[k, y, x] = False
    diagonal = ~torch.eye(150, dtype=torch.bool)[:130]
    mask = torch.cat([mask, diagonal[None], diagonal.flip(0)[None]])
    for spacing in ((1.0, 1.0), (1.0, 1e-3), (1e3, 1.0)):
        actual = op(mask, spacing, False, False)
        expected = reference.distance_transform(mask, spacing)
        torch.testing.assert_close(actual, expected, rtol=2.5e-7, atol=0)
    assert (actual[~mask] == 0).all()


@pytest.mark.parametrize("dtype", MASKS, ids=lambda d: str(d)[6:])
def test_every_dtype_of_a_mask(dtype, simd_level):
    mask = masks(30, 37)
    values = mask.to(dtype)
    assert torch.equal(fastseg.distance_transform(values), fastseg.distance_transform(mask))
    if dtype.is_floating_point:
        tiny = torch.finfo(dtype).smallest_normal / 2
        inside, outside = [math.nan, -math.nan, math.inf, -math.inf, tiny, -tiny], [0.0, -0.0]
    else:
        info = torch.iinfo(dtype) if dtype != torch.bool else None
        inside = [info.min or 1, info.max, 1, info.max // 2 + 1] if info else [True]
        outside = [0]
    line = torch.tensor([*inside, *outside, *inside], dtype=dtype)
    expected = [*range(len(inside), 0, -1), *[0] * len(outside), *range(1, len(inside) + 1)]
    assert fastseg.distance_transform(line, 1).tolist() == expected


def test_images_without_and_of_zeros_alone():
    mask = torch.ones(2, 3, 4)
    mask[1] = 0
    distance = fastseg.distance_transform(mask)
    assert distance[0].isinf().all()
    assert (distance[1] == 0).all()
    assert fastseg.distance_transform(mask, spacing=(1, 2), squared=True)[0].isinf().all()
    assert (fastseg.distance_transform(mask, 3)[0] == 1).all()  # the zeros of the other plane


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0), (0, 0), (2, 0, 3, 4)], ids=str)
def test_empty(shape):
    for dims in range(1, min(3, len(shape)) + 1):
        distance = fastseg.distance_transform(torch.zeros(shape), dims)
        assert distance.shape == shape
        assert distance.dtype == torch.float32


def test_leading_dimensions_are_a_batch():
    mask = masks(20, 9, batch=2)
    distance = fastseg.distance_transform(mask)
    for k in itertools.product(range(mask.shape[0]), range(2)):
        assert torch.equal(distance[k], fastseg.distance_transform(mask[k]))
    assert torch.equal(fastseg.distance_transform(mask.mT).mT, distance)
    volumes = fastseg.distance_transform(mask, 3)
    assert torch.equal(volumes, fastseg.distance_transform(mask, dims=3, spacing=[1, 1, 1]))


def test_spacings_of_any_size():
    """No square of a spacing overflows, and distances are as far from each other as spacings."""
    mask = masks(9, 7, batch=1)
    distance = fastseg.distance_transform(mask, spacing=(3, 1), dtype=torch.float64)
    for exponent in (-900, -60, 60, 900):
        scale = 2.0**exponent
        scaled = fastseg.distance_transform(mask, spacing=(3 * scale, scale), dtype=torch.float64)
        assert torch.equal(scaled, distance * scale)
    isotropic = fastseg.distance_transform(mask, spacing=1e25, squared=True)
    assert (isotropic[~mask] == 0).all()  # though the spacing's square is no float32
    assert isotropic[mask].isinf().all()


@pytest.mark.parametrize("shape", [(5, 300, 200), (1, 700, 70), (2, 40, 60, 50)], ids=str)
def test_the_same_for_any_number_of_threads(shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.98
    results = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(fastseg.distance_transform(mask, len(shape) - 1, spacing=None))
            results.append(fastseg.distance_transform(mask, 2, spacing=(1, 0.3)))
    finally:
        torch.set_num_threads(threads)
    for first, *others in (results[::2], results[1::2]):
        assert all(torch.equal(first, other) for other in others)


def test_vmap_takes_all_slices_at_once():
    mask = masks(12, 10)
    expected = fastseg.distance_transform(mask)
    for dim in range(2):
        actual = vmap(fastseg.distance_transform, dim, dim)(mask)
        assert torch.equal(actual, expected)
    calls = []
    with torch.profiler.profile() as profile:
        vmap(fastseg.distance_transform, 0)(mask)
    calls = [e for e in profile.events() if e.name == "fastseg::distance_transform"]
    assert 1 <= len(calls) <= 2  # that of vmap and that within


def test_torch():
    mask = masks(11, 13, batch=2)
    torch.library.opcheck(op, (mask, [1.0, 1.0]))
    torch.library.opcheck(op, (mask.float(), [1.0, 2.0, 0.5], True, True))

    def function(mask):
        return fastseg.distance_transform(mask > 0, spacing=(1, 2)) + 1

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(mask), function(mask))

    class Module(torch.nn.Module):
        def forward(self, mask):
            return function(mask)

    sizes = {0: Dim("n", max=64), 2: Dim("h", min=2, max=64)}
    program = export(Module(), (mask,), dynamic_shapes=[{**sizes, 1: None, 3: None}])
    other = masks(17, 13, batch=2)[:5]
    assert torch.equal(program.module()(other), function(other))


def test_no_gradient():
    score = torch.randn(2, 6, 6, requires_grad=True)
    assert not fastseg.distance_transform(score > 0).requires_grad
    assert not fastseg.distance_transform(score).requires_grad
    with pytest.raises(NotImplementedError, match="distance_transform has no gradient"):
        op(score, [1.0, 1.0]).sum().backward()


BAD = [
    ({"dims": 0}, RuntimeError, "dims must be 1, 2 or 3, got 0"),
    ({"dims": 4}, RuntimeError, "dims must be 1, 2 or 3, got 4"),
    ({"dims": True}, TypeError, "dims must be an int, got bool"),
    ({"dims": 2.0}, TypeError, "dims must be an int, got float"),
    ({"dims": 3}, RuntimeError, r"mask must have at least 3 dimensions, got shape \(4, 5\)"),
    ({"spacing": 0}, RuntimeError, r"spacing must be positive and finite, got \(0"),
    ({"spacing": -1.0}, RuntimeError, r"spacing must be positive and finite, got \(-1"),
    ({"spacing": (1, math.nan)}, RuntimeError, "spacing must be positive and finite"),
    ({"spacing": math.inf}, RuntimeError, "spacing must be positive and finite"),
    ({"spacing": (1, 2, 3)}, RuntimeError, r"one for each of 2 axes, got \(1, 2, 3\)"),
    ({"spacing": ()}, RuntimeError, r"one for each of 2 axes, got \(\)"),
    ({"spacing": "wide"}, TypeError, "spacing must be a number or 2 of them, got 'wide'"),
    ({"spacing": ("a", 1)}, TypeError, "spacing must be a number or 2 of them"),
    ({"spacing": True}, TypeError, "spacing must be a number or 2 of them, got True"),
    ({"dtype": torch.int32}, RuntimeError, "dtype must be float32 or float64, got torch.int32"),
    ({"dtype": "float32"}, RuntimeError, "dtype must be float32 or float64, got float32"),
    ({"squared": 1}, TypeError, "squared must be a bool, got int"),
    ({"squared": None}, TypeError, "squared must be a bool, got NoneType"),
]


@pytest.mark.parametrize(("arguments", "error", "words"), BAD, ids=lambda v: str(v)[:30])
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=f"fastseg::distance_transform: .*{words}"):
        fastseg.distance_transform(torch.ones(4, 5), **arguments)


@pytest.mark.parametrize("meta", [False, True])
def test_the_op_and_its_fake_refuse_the_same(meta):
    device = "meta" if meta else "cpu"
    for mask, spacing, words in (
        (torch.ones(4, 5), [], "spacing must hold a number for each of 1, 2 or 3 axes, got 0"),
        (torch.ones(4, 5), [1.0] * 4, "1, 2 or 3 axes, got 4"),
        (torch.ones(4, 5), [1.0] * 3, r"at least 3 dimensions, got shape \(4, 5\)"),
        (torch.ones(4, 5), [1.0, 0.0], r"spacing must be positive and finite, got \(1(.0)?, 0"),
        (torch.ones(4, 5).to(torch.complex64), [1.0], "mask must be bool, of integers"),
        (torch.ones(4, 5).to(torch.float8_e5m2), [1.0], "mask must be bool, of integers"),
    ):
        with pytest.raises(RuntimeError, match=f"fastseg::distance_transform: .*{words}"):
            op(mask.to(device), spacing)


def test_scipy(simd_level):
    ndimage = pytest.importorskip("scipy.ndimage")
    for size in ((50, 60), (130, 70), (9, 20, 31)):
        for spacing in SPACINGS[len(size)]:
            for mask in masks(*size, batch=1)[:-1]:
                expected = ndimage.distance_transform_edt(mask[0].numpy(), sampling=spacing)
                actual = fastseg.distance_transform(mask, len(size), spacing=spacing)
                torch.testing.assert_close(
                    actual[0].double(), torch.from_numpy(expected), rtol=2e-7, atol=0
                )
