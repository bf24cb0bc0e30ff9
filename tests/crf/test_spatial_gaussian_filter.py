"""The exact Gaussian filter of the pixel grid beside the sum over all pairs of pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastseg import reference
from fastseg.ops import spatial_gaussian_filter

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}

CASES = [
    # (B, C, *spatial), sigma
    ((2, 3, 17), (2.0,)),
    ((1, 1, 1), (3.0,)),
    ((2, 5, 13, 19), (3.0, 1.5)),
    ((1, 21, 30, 41), (1.0, 2.5)),
    ((1, 2, 9, 64), (50.0, 300.0)),  # taps end with the axes
    ((1, 3, 7, 9), (1e-3, 1e3)),
    ((2, 4, 1, 33), (2.0, 2.0)),
    ((2, 4, 33, 1), (2.0, 2.0)),
    ((1, 37, 6, 5), (1.0, 1.0)),
    ((1, 2, 300, 3), (4.0, 4.0)),  # several strips
    ((2, 3, 5, 12, 11), (0.7, 2.0, 3.0)),
    ((1, 2, 1, 6, 7), (2.0, 2.0, 2.0)),
    ((1, 1, 40, 4, 4), (6.0, 0.4, 9.0)),
    ((0, 3, 4, 5), (1.0, 1.0)),
    ((2, 0, 4, 5), (1.0, 1.0)),
    ((2, 3, 0, 5), (1.0, 1.0)),
]
each_case = pytest.mark.parametrize(("shape", "sigma"), CASES, ids=str)


def kernel_matrix(size, sigma, derivative):
    """K[i, j] = exp(-(i - j)^2 / (2 sigma^2)), or its derivative by sigma."""
    i = torch.arange(size, dtype=torch.float64)
    z = (i[:, None] - i) / sigma
    return torch.exp(-0.5 * z * z) * (z * z / sigma if derivative else 1)


def all_pairs(values, sigma, derivative=-1):
    """The definition, in float64, without any cut."""
    out = values.double()
    for axis, bandwidth in enumerate(sigma):
        k = kernel_matrix(values.shape[2 + axis], float(bandwidth), axis == derivative)
        out = torch.tensordot(k, out, ([1], [2 + axis])).movedim(0, 2 + axis)
    return out


def assert_near(actual, expected, dtype):
    assert actual.dtype == dtype
    assert actual.shape == expected.shape
    scale = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=TOLERANCE[dtype] * scale)


@each_case
@each_dtype
def test_is_the_sum_over_all_pairs(shape, sigma, dtype, simd_level):
    values, bandwidths = torch.randn(shape, dtype=dtype), torch.tensor(sigma, dtype=dtype)
    for derivative in range(-1, len(sigma)):
        expected = all_pairs(values, bandwidths, derivative)
        for function in (spatial_gaussian_filter, reference.spatial_gaussian_filter):
            actual = function(values, bandwidths, derivative)
            assert actual.is_contiguous()
            assert_near(actual, expected, dtype)


@each_dtype
@pytest.mark.parametrize("channels", [1, 2, 7, 8, 21, 24, 40])
def test_channels_last(channels, dtype, simd_level):
    values, sigma = torch.randn(2, channels, 11, 45, dtype=dtype), torch.tensor([1.5, 3.0])
    pixels_first = values.contiguous(memory_format=torch.channels_last)
    for derivative in (-1, 0, 1):
        actual = spatial_gaussian_filter(pixels_first, sigma, derivative)
        assert_near(actual, all_pairs(values, sigma, derivative), dtype)
        assert actual.stride() == (pixels_first.stride() if channels > 1 else values.stride())


def test_strides(simd_level):
    values, sigma = torch.randn(2, 3, 8, 10), torch.tensor([2.0, 1.0])
    expected = all_pairs(values, sigma)
    wide = torch.zeros(2, 6, 10, 16)
    wide[:, ::2, :, 4:12] = values.transpose(2, 3)
    assert_near(spatial_gaussian_filter(wide[:, ::2, :, 4:12].mT, sigma), expected, torch.float32)
    strided_sigma = torch.tensor([2.0, 9.0, 1.0])[::2]
    assert_near(spatial_gaussian_filter(values, strided_sigma), expected, torch.float32)
    one = values[:1, :1, :1, :1]
    actual = spatial_gaussian_filter(one.expand(2, 3, 8, 10), sigma)
    assert_near(actual, all_pairs(one.expand(2, 3, 8, 10), sigma), torch.float32)


def test_tiny_sigma_is_the_identity(simd_level):
    values = torch.randn(2, 3, 6, 7)
    for tiny in (1e-30, 0.15):
        torch.testing.assert_close(
            spatial_gaussian_filter(values, torch.full((2,), tiny)), values, rtol=0, atol=1e-6
        )


@each_dtype
def test_huge_sigma_is_the_sum(dtype, simd_level):
    values = torch.rand(1, 2, 20, 31, dtype=dtype)
    actual = spatial_gaussian_filter(values, torch.full((2,), 1e9, dtype=dtype))
    total = values.double().sum((2, 3), keepdim=True).expand(1, 2, 20, 31)
    assert_near(actual, total, dtype)


def test_nan_and_inf_reach_as_far_as_the_taps(simd_level):
    sigma = torch.tensor([0.5, 0.5])  # two taps on each side
    values = torch.zeros(1, 2, 9, 21)
    values[0, 0, 4, 10], values[0, 1, 0, 0] = math.nan, math.inf
    for x in (values, values.contiguous(memory_format=torch.channels_last)):
        out = spatial_gaussian_filter(x, sigma)
        torch.testing.assert_close(
            out, reference.spatial_gaussian_filter(values, sigma), equal_nan=True, rtol=0, atol=0
        )
        assert out[0, 0].isnan().sum() == 25
        assert out[0, 1].isinf().sum() == 9


def test_the_same_bits_for_any_number_of_threads(simd_level):
    values, sigma = torch.randn(1, 21, 150, 203), torch.tensor([3.0, 2.0])
    for x in (values, values.contiguous(memory_format=torch.channels_last)):
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(spatial_gaussian_filter(x, sigma))
        assert all(torch.equal(results[0], r) for r in results[1:])


def test_it_is_its_own_transpose():
    sigma = torch.tensor([2.0, 5.0], dtype=torch.float64)
    x, y = torch.randn(2, 2, 3, 11, 14, dtype=torch.float64)
    for derivative in (-1, 0, 1):
        left = (spatial_gaussian_filter(x, sigma, derivative) * y).sum()
        torch.testing.assert_close(left, (spatial_gaussian_filter(y, sigma, derivative) * x).sum())


@pytest.mark.parametrize("spatial", [(7,), (4, 5), (3, 1, 4)])
def test_gradients(spatial):
    values = torch.randn(2, 2, *spatial, dtype=torch.float64, requires_grad=True)
    sigma = (torch.rand(len(spatial), dtype=torch.float64) + 0.6).requires_grad_()
    assert torch.autograd.gradcheck(spatial_gaussian_filter, (values, sigma))
    for derivative in range(-1, len(spatial)):
        fixed = sigma.detach()
        function = lambda v, s=fixed, d=derivative: spatial_gaussian_filter(v, s, d)  # noqa: E731
        assert torch.autograd.gradcheck(function, (values,))
        assert torch.autograd.gradgradcheck(function, (values,))
    out = spatial_gaussian_filter(values, sigma, 0)
    with pytest.raises(NotImplementedError, match="no second derivative by sigma"):
        out.sum().backward()


def test_gradient_of_a_float64_sigma_for_float32_values():
    values = torch.randn(1, 2, 5, 6)
    sigma = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    spatial_gaussian_filter(values, sigma).square().sum().backward()
    assert sigma.grad.dtype == torch.float64
    assert sigma.grad.abs().min() > 0


def test_compile_and_vmap():
    values = torch.randn(2, 3, 6, 9, requires_grad=True)
    sigma = torch.tensor([1.0, 2.0], requires_grad=True)

    def loss(v, s):
        return spatial_gaussian_filter(2 * v, s).square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        torch.autograd.grad(compiled(values, sigma), (values, sigma)),
        torch.autograd.grad(loss(values, sigma), (values, sigma)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)

    many, sigmas = torch.randn(4, 2, 3, 6, 9), torch.rand(4, 2) + 1
    for dims, each_sigma in (((0, None), [sigma] * 4), ((0, 0), sigmas)):
        argument = sigma if dims[1] is None else sigmas
        actual = torch.func.vmap(spatial_gaussian_filter, dims)(many, argument)
        pairs = zip(many, each_sigma, strict=True)
        expected = torch.stack([spatial_gaussian_filter(v, s) for v, s in pairs])
        torch.testing.assert_close(actual, expected)


def test_opcheck():
    op = torch.ops.fastseg.spatial_gaussian_filter.default
    sigma = torch.tensor([1.0, 2.0], requires_grad=True)
    values = torch.randn(2, 3, 5, 6, requires_grad=True)
    channels_last = values.detach().contiguous(memory_format=torch.channels_last)
    for arguments in (
        (values, sigma),
        (channels_last.requires_grad_(), sigma.detach()),
        (values.detach(), sigma.detach(), 1),
        (torch.randn(1, 1, 3, 4, 5).double(), torch.ones(3)),
        (torch.randn(1, 2, 9), torch.ones(1), 0),
    ):
        torch.library.opcheck(op, arguments)


BAD = {
    "no spatial axis": (torch.zeros(2, 3), torch.ones(0), -1, r"values must .*, got \(2, 3\)"),
    "four axes": (torch.zeros(1, 1, 2, 2, 2, 2), torch.ones(4), -1, "values must have shape"),
    "half": (torch.zeros(1, 1, 2, 2).half(), torch.ones(2), -1, "values must be float32 or float6"),
    "integers": (torch.zeros(1, 1, 2, 2).long(), torch.ones(2), -1, "values must be float32"),
    "sigma of integers": (torch.zeros(1, 1, 2, 2), torch.ones(2).int(), -1, "sigma must be float3"),
    "one sigma": (torch.zeros(1, 1, 2, 2), torch.ones(1), -1, r"sigma must have shape \(2,\)"),
    "sigma scalar": (torch.zeros(1, 1, 2), torch.tensor(1.0), -1, r"sigma must have shape \(1,\)"),
    "derivative 2": (torch.zeros(1, 1, 2, 2), torch.ones(2), 2, "derivative must be -1 or one of"),
    "derivative -2": (torch.zeros(1, 1, 2, 2), torch.ones(2), -2, "derivative must be -1 or one"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    values, sigma, derivative, message = BAD[name]
    message = f"spatial_gaussian_filter: {message}"
    with pytest.raises(RuntimeError, match=message):
        spatial_gaussian_filter(values, sigma, derivative)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match=message):
        spatial_gaussian_filter(values, sigma, derivative)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, -math.inf])
def test_bad_sigma(bad):
    for sigma in (torch.tensor([bad, 1.0]), torch.tensor([1.0, bad]).double()):
        for function in (spatial_gaussian_filter, reference.spatial_gaussian_filter):
            with pytest.raises(RuntimeError, match="sigma must be positive and finite, got"):
                function(torch.zeros(1, 1, 3, 3), sigma)
