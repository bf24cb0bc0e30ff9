"""The exact Gaussian filter beside a sum over all pairs in float64, and its gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastseg import reference
from fastseg.ops import exact_gaussian_filter

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
op = torch.ops.fastseg.exact_gaussian_filter
backward = torch.ops.fastseg.exact_gaussian_filter_backward
CASES = (  # (B, C, d, N)
    (1, 1, 1, 1),
    (2, 3, 2, 17),
    (1, 21, 5, 63),
    (2, 7, 5, 64),
    (1, 40, 3, 65),
    (3, 2, 6, 200),
    (1, 13, 9, 1000),
    (1, 5, 17, 129),
    (0, 2, 3, 10),
    (2, 0, 3, 10),
    (2, 1, 3, 0),
)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def points(b, c, d, n, dtype=torch.float32):
    """(values, features): clusters far from the origin, where the square of a norm is 1e4."""
    features = torch.randn(b, d, n, dtype=dtype) * 1.5 * min(1, 3 / d) + 100 / d**0.5
    return torch.randn(b, c, n, dtype=dtype), features


def error(actual, expected):
    """Relative, of L2 norms."""
    if expected.numel() == 0:
        return 0.0
    return ((actual.double() - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sums_over_all_pairs(case, dtype, simd_level):
    values, features = points(*case, dtype)
    expected = reference.exact_gaussian_filter(values.double(), features.double())
    tolerance = 1e-6 if dtype == torch.float32 else 2e-15
    for cutoff in (0.0, 1e-9):
        actual = op(values, features, cutoff)
        assert actual.shape == values.shape
        assert actual.dtype == dtype
        assert actual.is_contiguous()
        assert error(actual, expected) < tolerance
    assert error(exact_gaussian_filter(values, features), expected) < 1e-4


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case, dtype, simd_level):
    values, features = points(*case, dtype)
    grad = torch.randn_like(values)
    double = (t.double() for t in (grad, values, features))
    expected = reference.exact_gaussian_filter_backward(*double, 0.0)
    tolerance = 2e-5 if dtype == torch.float32 else 4e-14
    for cutoff in (0.0, 1e-9):
        for a, b in zip(backward(grad, values, features, cutoff), expected, strict=True):
            assert a.shape == b.shape
            assert a.dtype == dtype
            assert error(a, b) < tolerance


@pytest.mark.parametrize("channels", range(1, 41))
def test_any_number_of_channels(channels, simd_level):
    values, features = points(1, channels, 4, 70)
    expected = reference.exact_gaussian_filter(values.double(), features.double())
    assert error(op(values, features, 0.0), expected) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bit_values_are_summed_in_float32(dtype):
    values, features = points(2, 3, 5, 200)
    values, grad = values.to(dtype), torch.randn_like(values).to(dtype)
    assert torch.equal(op(values, features), op(values.float(), features).to(dtype))
    a, b = (
        backward(grad, values, features, 0.0),
        backward(grad.float(), values.float(), features, 0.0),
    )
    assert torch.equal(a[0], b[0].to(dtype))
    assert torch.equal(a[1], b[1])


def test_the_weight_of_far_points_is_zero(simd_level):
    """Also where the square of a distance overflows."""
    for dtype, far in itertools.product((torch.float32, torch.float64), (40.0, 1e4, 1e30)):
        features = torch.zeros(1, 2, 3, dtype=dtype)
        features[0, 0, 1] = far
        values = torch.tensor([[[1.0, 1e30, 2.0]]], dtype=dtype)
        expected = torch.tensor([[[3.0, 1e30, 3.0]]], dtype=dtype)
        assert torch.equal(op(values, features, 0.0), expected)
        assert torch.equal(op(values, features, 1e-3), expected)


def test_exponentials(simd_level):
    """Two points at every distance up to where weights leave float32."""
    distance = torch.linspace(0, 13, 4001, dtype=torch.float64).float()
    features = torch.stack([torch.zeros_like(distance), distance], 1)[:, None]
    values = torch.tensor([[[0.0, 1.0]]]).expand(len(distance), 1, 2)
    actual = op(values, features, 0.0)[:, 0, 0].double()
    expected = torch.exp(-0.5 * distance.double().square())
    assert ((actual - expected).abs() <= expected * (3e-7 + 1e-7 * distance.square())).all()
    assert actual[0] == 1


def photo(height=60, width=80):
    """(values, features) of a smooth picture with noise, bandwidths 20 and 0.1."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    colour = ((x / 13).sin() * (y / 9).cos() > 0).float() + 0.03 * torch.randn(height, width)
    features = torch.stack([x / 20, y / 20, colour / 0.1]).float().flatten(1)[None]
    return torch.rand(1, 5, height * width), features


def test_the_cutoff_leaves_out_pairs_and_little_else(simd_level):
    values, features = photo()
    expected = reference.exact_gaussian_filter(values.double(), features.double())
    errors = [error(op(values, features, c), expected) for c in (0.0, 3e-5, 1e-2, 0.5)]
    assert errors[0] < 1e-6
    assert errors[1] < 1e-5
    assert errors[1] < errors[2] < errors[3] < 0.5
    assert errors[2] > 1e-5  # that pairs are left out at all


def test_the_filter_is_its_own_adjoint(simd_level):
    values, features = photo(20, 30)
    other = torch.rand_like(values)
    a = (op(values, features).double() * other).sum()
    b = (values.double() * op(other, features).double()).sum()
    torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


def test_strides():
    values, features = points(2, 3, 4, 150)
    expected = op(values, features)

    def other_strides(t):
        wide = t.new_zeros((*t.shape[::-1], 2))
        wide[..., 1] = t.permute(2, 1, 0)
        return wide[..., 1].permute(2, 1, 0)

    for v, f in itertools.product(
        (values, other_strides(values)), (features, other_strides(features))
    ):
        assert torch.equal(op(v, f), expected)
    same = values[:, :1].expand_as(values)
    assert torch.equal(op(same, features), op(same.contiguous(), features))


def test_threads_and_runs_change_no_bit(simd_level):
    values, features = photo()
    grad = torch.rand_like(values)
    expected = None
    for threads in (1, 2, 3, 5, 2):
        torch.set_num_threads(threads)
        results = [op(values, features), *backward(grad, values, features, 3e-5)]
        expected = expected or results
        assert all(map(torch.equal, results, expected))


def test_images_of_a_batch_are_independent():
    values, features = points(3, 4, 5, 300)
    together = op(values, features)
    for b in range(3):
        assert torch.equal(op(values[b : b + 1], features[b : b + 1]), together[b : b + 1])


def test_equal_points(simd_level):
    """More than a block of them: every box is a point."""
    values = torch.rand(1, 2, 300)
    out = op(values, torch.full((1, 3, 300), 7.0))
    torch.testing.assert_close(out, values.sum(-1, keepdim=True).expand_as(out))


def test_nan_in_the_values_reaches_its_neighbours(simd_level):
    values, features = points(1, 2, 3, 200)
    values[0, 1, 50] = float("nan")
    out = op(values, features)
    assert out[0, 0].isfinite().all()
    near = (features[0] - features[0, :, 50:51]).square().sum(0) < 20
    assert out[0, 1, near].isnan().all()


# Gradients by autograd.


def test_gradcheck():
    values, features = points(2, 3, 2, 20, torch.float64)
    inputs = (values.requires_grad_(), features.requires_grad_())
    assert torch.autograd.gradcheck(lambda v, f: op(v, f, 0.0), inputs)


def test_the_filter_is_linear_in_its_values_to_every_order():
    values, features = points(1, 2, 2, 20, torch.float64)
    run = lambda v: op(v, features, 0.0).square()  # noqa: E731
    assert torch.autograd.gradgradcheck(run, values.requires_grad_())


def test_second_derivatives_of_features_are_refused():
    values, features = points(1, 2, 2, 20)
    features.requires_grad_()
    (grad,) = torch.autograd.grad(op(values, features).square().sum(), features, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("needs", [(True, False), (False, True), (True, True)], ids=str)
def test_opcheck(needs):
    values, features = points(2, 3, 4, 70)
    tensors = [t.requires_grad_(n) for t, n in zip((values, features), needs, strict=True)]
    torch.library.opcheck(op.default, (*tensors, 1e-6))
    detached = (torch.randn_like(values), values.detach(), features.detach(), 0.0)
    torch.library.opcheck(backward.default, detached)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    def run(v, f):
        return exact_gaussian_filter(v * 2, f + 1).square()

    compiled = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (50, 70):
        inputs = [t.requires_grad_() for t in points(1, 3, 4, n)]
        results = []
        for function in (compiled, run):
            out = function(*inputs)
            results.append([out, *torch.autograd.grad(out.sum(), inputs)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_vmap():
    values, features = points(6, 3, 4, 50)
    grad = torch.randn_like(values)
    v, f, g = (t.unflatten(0, (2, 3)) for t in (values, features, grad))
    expected = op(values, features)
    assert torch.equal(torch.vmap(op)(v, f).flatten(0, 1), expected)
    shared = torch.vmap(op, in_dims=(1, None))(v.movedim(0, 1), f[0])
    assert torch.equal(shared[0], expected[:3])
    actual = torch.vmap(lambda *x: backward(*x, 0.0))(g, v, f)
    for a, b in zip(actual, backward(grad, values, features, 0.0), strict=True):
        assert torch.equal(a.flatten(0, 1), b)


# Bad input, in C++ and under tracing.

V, P = torch.zeros(2, 3, 10), torch.zeros(2, 4, 10)
BAD = (
    ((V[0], P), r"values must have the shape \(B, C, N\), got \(3, 10\)"),
    ((V, P[0]), r"features must have the shape \(B, d, N\), got \(4, 10\)"),
    ((V, P[:, :0]), "features must have d >= 1 dimensions, got 0"),
    ((V, P[:1]), "features must have the batch size 2 of values, got 1"),
    ((V, P[..., :9]), "features must have the 10 points of values, got 9"),
    ((V.int(), P), "values must be float32, float64, float16 or bfloat16, got"),
    ((V, P.double()), "features must be .* for values of .*, got"),
    ((V.double(), P), "features must be .* for values of .*, got"),
    ((V, P, -0.1), r"cutoff must be in \[0, 1\), got -0.1"),
    ((V, P, 1.0), r"cutoff must be in \[0, 1\), got 1"),
    ((V, P, float("nan")), r"cutoff must be in \[0, 1\), got nan"),
)


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[m for _, m in BAD])
def test_bad_input(arguments, message):
    with pytest.raises(RuntimeError, match=f"fastseg::exact_gaussian_filter: {message}"):
        op(*arguments)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(RuntimeError, match=message):
        op(*arguments)
    cutoff = arguments[2] if len(arguments) == 3 else 0.0
    with pytest.raises(RuntimeError, match=f"fastseg::exact_gaussian_filter_backward: {message}"):
        backward(arguments[0], *arguments[:2], cutoff)


def test_bad_gradients():
    for grad in (V[:, :2], V.double()):
        with pytest.raises(RuntimeError, match=r"grad must have the shape .* of values, got"):
            backward(grad, V, P, 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_features_must_be_finite(bad, simd_level):
    features = P.clone()
    features[1, 2, 7] = bad
    for run in (
        lambda: op(V, features),
        lambda: backward(V, V, features, 0.0),
        lambda: reference.exact_gaussian_filter(V, features),
    ):
        with pytest.raises(RuntimeError, match="features must be finite, got NaN or infinity"):
            run()
