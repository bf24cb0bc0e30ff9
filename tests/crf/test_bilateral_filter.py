"""The bilateral filter beside the plain one, the lattice that is kept, and all pairs of pixels."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastseg
from fastseg import reference
from fastseg._core.pairwise import bilateral_features
from fastseg.ops import bilateral_filter
from fastseg.reference.crf.mean_field import gaussian_sums

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
op = torch.ops.fastseg.bilateral_filter.default
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-13}

SHAPES = [
    # (B, K, H, W), C
    ((1, 1, 1, 1), 3),
    ((2, 2, 13, 19), 3),  # no multiple of 4 pixels: the origin's vertices exist
    ((3, 3, 8, 10), 1),  # four vertices a simplex
    ((1, 4, 9, 7), 6),  # nine
    ((2, 5, 12, 9), 3),  # more channels than simplices' rows are for
    ((1, 21, 10, 11), 2),
    ((1, 2, 140, 121), 3),  # two tiles
    ((0, 2, 4, 5), 3),
    ((2, 0, 4, 5), 3),
    ((1, 2, 0, 5), 3),
]
each_shape = pytest.mark.parametrize(("shape", "colours"), SHAPES, ids=str)

# refine, dilation, passes, symmetric, reverse, gain, side
OPTIONS = [
    (1.0, 0, 1, False, False, 0.97, 0.5),
    (1.0, 0, 1, False, True, 1.0, 0.5),
    (1.3, 0, 2, True, False, 0.5, 0.45),
    (1.0, 2, 1, True, False, 1.7, 0.45),
    (1.0, 1, 3, False, True, 1.0, 0.3),
]


def photo(b, c, h, w, dtype=torch.float32):
    """Smooth shades with an edge, 0 to 255, and a little noise."""
    y, x = torch.meshgrid(torch.linspace(0, 3, h), torch.linspace(0, 4, w), indexing="ij")
    phase = torch.rand(b, c, 1, 1) * 6
    shades = 90 + 60 * torch.sin(x + phase) * torch.cos(y * 1.3) + 70 * (x + y > 3)
    return (shades + 4 * torch.randn(b, c, h, w)).to(dtype)


def assert_near(actual, expected, tolerance):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.is_contiguous()
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * scale)


@each_shape
@each_dtype
def test_is_the_reference(shape, colours, dtype, simd_level):
    b, _, h, w = shape
    values, image = torch.randn(shape, dtype=dtype), photo(b, colours, h, w, dtype)
    for options in OPTIONS:
        if h * w > 10000 and (options != OPTIONS[0] or dtype == torch.float64):
            continue  # the plain lattice takes seconds
        actual = op(values, image, 20.0, 13.0, *options)
        expected = reference.bilateral_filter(values, image, 20.0, 13.0, *options)
        assert_near(actual, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("quality", ["compat", "high"])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 21])
def test_is_the_lattice_that_is_kept(quality, channels):
    values, image = torch.randn(2, channels, 60, 70), photo(2, 3, 60, 70)
    lattice = fastseg.PermutohedralLattice(
        bilateral_features("test", image, 30, 15, image.dtype), quality=quality
    )
    actual = bilateral_filter(values, image, 30, 15, quality=quality)
    assert_near(actual, lattice.filter(values), 5e-6)


def test_sums_are_not_normalised():
    """Krähenbühl and Koltun's are half of those over all pairs; its holes lose the others."""
    values, image = torch.rand(1, 2, 40, 50, dtype=torch.float64), photo(1, 3, 40, 50).double()
    features = bilateral_features("test", image, 12, 40, torch.float64)
    exact = gaussian_sums(values.flatten(2), features.flatten(2)).view(values.shape)
    for quality, least, most in (("compat", 0.45, 0.6), ("high", 0.9, 1.05)):
        actual = bilateral_filter(values, image, 12, 40, quality=quality)
        assert least < (actual.sum() / exact.sum()).item() < most
        assert torch.cosine_similarity(actual.flatten(), exact.flatten(), 0) > 0.99


def test_wide_keys():
    """Vertices whose coordinates do not fit into 64 bits."""
    values, image = torch.randn(2, 2, 9, 11), torch.rand(2, 6, 9, 11) * 255
    actual = op(values, image, 0.05, 0.02)
    assert_near(actual, reference.bilateral_filter(values, image, 0.05, 0.02), 5e-6)
    assert_near(op(values, image, 0.05, 0.02), actual, 0)


@pytest.mark.parametrize("channels", [2, 9])
@pytest.mark.parametrize("batch", [1, 5])
def test_threads_and_batches_change_nothing(channels, batch):
    values, image = torch.randn(batch, channels, 150, 140), photo(batch, 3, 150, 140)
    torch.set_num_threads(1)
    expected = bilateral_filter(values, image, 25, 15)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        for _ in range(3):
            assert torch.equal(bilateral_filter(values, image, 25, 15), expected)
    images = [bilateral_filter(values[i : i + 1], image[i : i + 1], 25, 15) for i in range(batch)]
    assert torch.equal(torch.cat(images), expected)


def test_any_strides():
    values, image = torch.randn(2, 3, 12, 14), photo(2, 3, 12, 14)
    expected = bilateral_filter(values, image, 9, 15)
    last = torch.channels_last
    for v, i in (
        (values.contiguous(memory_format=last), image.contiguous(memory_format=last)),
        (values.flip(3).flip(3), image.mT.contiguous().mT),
        (torch.cat([values, values], 1)[:, :3], image),
    ):
        assert torch.equal(bilateral_filter(v, i, 9, 15), expected)
    shared = bilateral_filter(values, image[:1].expand(2, -1, -1, -1), 9, 15)
    assert torch.equal(shared[0], expected[0])


def test_is_linear_and_its_transpose_is_its_transpose():
    values, image = torch.randn(1, 30, 5, 6, dtype=torch.float64), photo(1, 3, 5, 6).double()
    identity = torch.eye(30, dtype=torch.float64).view(1, 30, 5, 6)
    matrix = bilateral_filter(identity, image, 4, 30).view(30, 30)  # row k: W e_k
    assert not torch.allclose(matrix, matrix.mT)
    transposed = bilateral_filter(identity, image, 4, 30, transposed=True).view(30, 30)
    torch.testing.assert_close(transposed, matrix.mT)
    out = bilateral_filter(values, image, 4, 30).view(30, 30)
    torch.testing.assert_close(out, values.view(30, 30) @ matrix)
    high = bilateral_filter(identity, image, 4, 30, quality="high").view(30, 30)
    torch.testing.assert_close(high, high.mT)


def test_values_that_are_not_finite_stay_near():
    values, image = torch.ones(1, 2, 30, 40), torch.zeros(1, 3, 30, 40)
    values[0, 0, 3, 3] = float("nan")
    out = bilateral_filter(values, image, 2, 10)
    assert out[0, 0, 3, 3].isnan()
    assert out[0, 1].isfinite().all()
    assert out[0, 0, 20:, 20:].isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"values": torch.ones(2, 4, 5)},
            r"values must have shape \(B, K, H, W\), got \(2, 4, 5\)",
        ),
        ({"values": torch.ones(1, 2, 4, 5).half()}, "values must be float32 or float64, got"),
        ({"image": torch.ones(2, 3, 4, 5)}, r"image must have shape \(1, C, 4, 5\) with C from 1"),
        ({"image": torch.ones(1, 7, 4, 5)}, r"C from 1 to 6, got \(1, 7, 4, 5\)"),
        ({"image": torch.ones(1, 0, 4, 5)}, "C from 1 to 6"),
        ({"image": torch.ones(1, 3, 5, 4)}, r"image must have shape \(1, C, 4, 5\)"),
        ({"image": torch.ones(1, 3, 4, 5).double()}, "image must have values'"),
        ({"sxy": 0.0}, "sxy must be positive and finite, got 0"),
        ({"srgb": float("nan")}, "srgb must be positive and finite, got nan"),
        ({"srgb": float("inf")}, "srgb must be positive and finite, got inf"),
        ({"image": torch.full((1, 3, 4, 5), float("nan"))}, "features must be finite, got nan"),
        ({"srgb": 1e-9}, "features must be smaller"),
    ],
)
def test_bad_input(options, message):
    arguments = {
        "values": torch.ones(1, 2, 4, 5),
        "image": torch.full((1, 3, 4, 5), 200.0),
        "sxy": 5.0,
        "srgb": 5.0,
        **options,
    }
    with pytest.raises(RuntimeError, match=f"fastseg::(bilateral_filter|.*lattice): .*{message}"):
        bilateral_filter(**arguments)
    if "features" not in message:
        mode = FakeTensorMode()
        values, image = (mode.from_tensor(arguments[n]) for n in ("values", "image"))
        with mode, pytest.raises(RuntimeError, match=message):
            op(values, image, arguments["sxy"], arguments["srgb"])


@pytest.mark.parametrize("quality", ["compat", "high"])
def test_gradcheck(quality):
    values, image = torch.randn(1, 2, 4, 5).double().requires_grad_(), photo(1, 3, 4, 5).double()

    def filtered(values):
        return bilateral_filter(values, image, 3, 40, quality=quality)

    assert torch.autograd.gradcheck(filtered, values)
    assert torch.autograd.gradgradcheck(lambda v: filtered(v.sin()), values)


def test_the_image_has_no_gradient():
    values, image = torch.ones(1, 2, 4, 5), torch.ones(1, 3, 4, 5, requires_grad=True)
    out = bilateral_filter(values, image, 5, 5)
    with pytest.raises(NotImplementedError, match="image has no gradient here"):
        out.sum().backward()


def test_opcheck():
    values, image = torch.randn(2, 2, 4, 5), photo(2, 3, 4, 5)
    torch.library.opcheck(op, (values, image, 5.0, 13.0))
    torch.library.opcheck(op, (values.double(), image.double(), 5.0, 13.0, *OPTIONS[2]))
