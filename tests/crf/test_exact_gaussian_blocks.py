"""Points sorted into blocks once: filters of them are those of the points; nobody sorts again."""

from __future__ import annotations

import collections
import types

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastseg
from fastseg._core import library
from fastseg.ops import exact_gaussian_filter
from fastseg.ops.crf import filters
from tests.crf.test_exact_gaussian_filter import CASES, each_dtype, points

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
op = torch.ops.fastseg.exact_gaussian_filter
backward = torch.ops.fastseg.exact_gaussian_filter_backward
build = torch.ops.fastseg.exact_gaussian_blocks
compiled = pytest.mark.skipif(
    library.backend("exact_gaussian_blocks", "cpu") == "reference",
    reason="the reference has no blocks",
)


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_filters_of_blocks_are_those_of_the_points(case, dtype, simd_level):
    values, features = points(*case, dtype)
    grad = torch.randn_like(values)
    blocks = build(features)
    for cutoff in (0.0, 1e-3):
        assert torch.equal(op(values, features, cutoff, blocks), op(values, features, cutoff))
        given, made = (backward(grad, values, features, cutoff, b) for b in (blocks, None))
        assert all(map(torch.equal, given, made))


@compiled
@pytest.mark.parametrize("n", [1, 64, 65, 1000])
def test_blocks(n):
    _, features = points(2, 1, 3, n)
    order, in_order, lower, upper = build(features)
    padded = -(-n // 64) * 64
    assert order.dtype == torch.int32
    assert order.shape == (2, padded)
    assert torch.equal(order[:, :n].sort(1)[0], torch.arange(n).expand(2, n).int())
    assert torch.equal(order[:, n:], order[:, n - 1 : n].expand(2, padded - n))
    index = order.long()[:, :, None].expand(2, padded, 3)
    assert torch.equal(in_order, features.mT.gather(1, index))
    leaves = in_order.mT.unflatten(2, (-1, 16))
    assert torch.equal(lower, leaves.amin(-1))
    assert torch.equal(upper, leaves.amax(-1))


def test_gradients_of_blocks_are_those_of_the_points():
    values, features = points(2, 3, 4, 130)
    weight = torch.randn_like(values)
    results = []
    for given in (False, True):
        v, f = values.clone().requires_grad_(), features.clone().requires_grad_()
        out = op(v, f, 0.0, build(f.detach()) if given else None)
        results.append([out, *torch.autograd.grad((out * weight).sum(), (v, f))])
    assert all(map(torch.equal, *results))


def test_gradients_of_the_values_alone():
    values, features = points(1, 2, 3, 70)
    blocks = build(features)
    run = lambda v: op(v, features, 0.0, blocks).square()  # noqa: E731
    v = values.requires_grad_()
    (grad,) = torch.autograd.grad(run(v).sum(), v, create_graph=True)
    (again,) = torch.autograd.grad(grad.square().sum(), v)
    expected = op(2 * op(2 * grad, features, 0.0), features, 0.0)
    torch.testing.assert_close(again, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_blocks_made_in_any_mode_serve_all(mode):
    values, features = points(1, 2, 3, 70)
    with mode():
        blocks = build(features)
        assert torch.equal(op(values, features, 0.0, blocks), op(values, features, 0.0))
    v = values.clone().requires_grad_()
    if mode is not torch.inference_mode:  # whose tensors cannot be saved for a gradient
        (grad,) = torch.autograd.grad(op(v, features, 0.0, blocks).sum(), v)
        assert torch.equal(grad, op(torch.ones_like(values), features, 0.0))


def test_blocks_have_no_gradient():
    _, features = points(1, 1, 3, 70)
    blocks = build(features.requires_grad_())
    if blocks:
        with pytest.raises(NotImplementedError, match="has no gradient of its own"):
            blocks[1].sum().backward()


def test_opcheck():
    values, features = points(2, 3, 4, 70)
    blocks = build(features)
    torch.library.opcheck(build.default, (features,))
    torch.library.opcheck(op.default, (values.requires_grad_(), features, 1e-6, blocks))
    torch.library.opcheck(
        backward.default, (values.detach(), values.detach(), features, 0.0, blocks)
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    def run(v, f):
        blocks = build(f)
        return op(op(v, f, 0.0, blocks), f, 0.0, blocks)

    step = torch.compile(run, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (50, 150):
        inputs = points(1, 3, 4, n)
        assert torch.equal(step(*inputs), run(*inputs))


def test_vmap():
    values, features = points(6, 3, 4, 50)
    v, f = values.unflatten(0, (3, 2)), features.unflatten(0, (3, 2))
    expected = op(values, features).unflatten(0, (3, 2))
    assert torch.equal(torch.vmap(lambda v, f: op(v, f, 3e-5, build(f)))(v, f), expected)
    shared = build(f[0])
    actual = torch.vmap(lambda v: op(v, f[0], 3e-5, shared))(v)
    assert torch.equal(actual, torch.stack([op(one, f[0]) for one in v]))
    grads = torch.vmap(lambda v: backward(v, v, f[0], 0.0, shared))(v)
    for a, b in zip(grads, zip(*(backward(o, o, f[0], 0.0) for o in v), strict=True), strict=True):
        assert torch.equal(a, torch.stack(b))


def test_gradients_in_functorch():
    values, features = points(1, 2, 3, 40)

    def loss(v, f):
        return op(v, f, 0.0, build(f.detach())).square().sum()

    expected = torch.func.grad(lambda v, f: op(v, f, 0.0).square().sum(), (0, 1))(values, features)
    actual = torch.func.grad(loss, (0, 1))(values, features)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)


# How often points are sorted.


def calls(run) -> collections.Counter:
    """How often each op is called, within others too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return collections.Counter({e.key: e.count for e in profile.key_averages()})


TERMS = (
    fastseg.PairwiseBilateral(20, 13, 3.0),
    fastseg.PairwiseBilateral(5, 50, 2.0, normalization="none"),
    fastseg.PairwiseGaussian(3.0, 2.0),
)


@pytest.mark.parametrize("iterations", [0, 1, 4, 10])
def test_a_dense_crf_sorts_the_points_of_a_term_once(iterations):
    unary, image = torch.rand(2, 3, 7, 9), torch.rand(2, 3, 7, 9) * 255

    def run():
        fastseg.dense_crf(unary, image, TERMS, quality="exact", iterations=iterations)

    counts = calls(run)
    assert counts["fastseg::exact_gaussian_blocks"] == 2
    assert counts["fastseg::exact_gaussian_filter"] == 2 * iterations + 1  # and one of ones


def test_every_filter_is_given_the_blocks(monkeypatch):
    """Without them it would sort the points by itself."""
    given = []

    def watched(name):
        op = getattr(torch.ops.fastseg, name)

        def run(*arguments):
            given.append(arguments[-1])
            return op(*arguments)

        return run

    names = ("exact_gaussian_filter", "exact_gaussian_filter_backward")
    patched = types.SimpleNamespace(**{name: watched(name) for name in names})
    patched.exact_gaussian_blocks = lambda *arguments: [*build(*arguments)]
    monkeypatch.setattr(filters, "ops", patched)
    term = filters.ExactFilter(torch.randn(1, 3, 8, 9))
    values = torch.randn(1, 2, 8, 9)
    term.apply(values)
    term.adjoint(values)
    term.backward(values, values)
    assert len(given) == 3
    assert all(blocks is term.blocks for blocks in given)


@pytest.mark.parametrize("checkpoints", [0, 1, 3])
def test_its_gradient_sorts_them_once_more(checkpoints):
    unary, image = torch.rand(1, 3, 7, 9).requires_grad_(), torch.rand(1, 3, 7, 9) * 255
    image.requires_grad_()
    options = {"quality": "exact", "iterations": 5, "checkpoints": checkpoints}
    q = fastseg.dense_crf(unary, image, TERMS, **options)
    counts = calls(lambda: q.square().sum().backward())
    assert counts["fastseg::exact_gaussian_blocks"] == 2
    assert counts["fastseg::exact_gaussian_filter_backward"] >= 10


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_steps_sort_them_once(mode):
    unary, image = torch.rand(1, 3, 7, 9), torch.rand(1, 3, 7, 9) * 255
    with mode():
        unary.requires_grad_(mode is torch.enable_grad)

        def run():
            field = fastseg.MeanField(unary, image, TERMS, quality="exact")
            for _ in range(3):
                field.step()
            field.kl_divergence()

        counts = calls(run)
    assert counts["fastseg::exact_gaussian_blocks"] == 2
    assert counts["fastseg::exact_gaussian_filter"] == 2 * 4 + 1


# Bad input, in C++ and under tracing.

V, P = torch.zeros(2, 3, 70), torch.zeros(2, 4, 70)


def bad_blocks():
    """Blocks that are not P's, and what the error says of them."""
    order, in_order, lower, upper = build(P)
    yield [], "blocks must be None or exact_gaussian_blocks' 4 tensors, got 0"
    yield [order, in_order, lower], "4 tensors, got 3"
    yield [order.long(), in_order, lower, upper], r"blocks\[0\] must be .* of shape \(2, 128\), got"
    yield [order, in_order.double(), lower, upper], r"blocks\[1\] must be .*\(2, 128, 4\), got"
    yield [order, in_order, lower[:1], upper], r"blocks\[2\] must be .*, got .*\(1, 4, 8\)"
    yield [order, in_order, lower, upper[..., :7]], r"blocks\[3\] must be .*, got .*\(2, 4, 7\)"
    yield build(P[..., :64]), r"blocks\[0\] must be .*\(2, 128\), got .*\(2, 64\)"


@compiled
def test_blocks_with_bad_indices():
    """They are read nowhere."""
    order, *others = build(P)
    for bad in (-1, 70, 2**31 - 1):
        wrong = order.clone()
        wrong[1, 69] = bad
        message = rf"blocks\[0\] must be from 0 to 69, got {bad}"
        with pytest.raises(RuntimeError, match=message):
            op(V, P, 0.0, [wrong, *others])
        with pytest.raises(RuntimeError, match=message):
            backward(V, V, P, 0.0, [wrong, *others])


@compiled
def test_bad_blocks():
    cases = list(bad_blocks())
    assert len(cases) == 7
    for blocks, message in cases:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            fakes = [mode.from_tensor(t) for t in (V, P)]
            fake_blocks = [mode.from_tensor(t) for t in blocks]
        for v, f, given in ((V, P, blocks), (*fakes, fake_blocks)):
            with pytest.raises(RuntimeError, match=message):
                op(v, f, 0.0, given)
            with pytest.raises(RuntimeError, match=message):
                backward(v, v, f, 0.0, given)


BAD_FEATURES = (
    ((P[0],), r"features must have the shape \(B, d, N\), got \(4, 70\)"),
    ((P[:, :0],), "features must have d >= 1 dimensions, got 0"),
    ((P.half(),), "features must be float32 or float64, got"),
    ((P, 1.0), r"cutoff must be in \[0, 1\), got 1"),
    ((P, -1.0), r"cutoff must be in \[0, 1\), got -1"),
)


@pytest.mark.parametrize(("arguments", "message"), BAD_FEATURES, ids=[m for _, m in BAD_FEATURES])
def test_bad_features(arguments, message):
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    for values in (arguments, fakes):
        with pytest.raises(RuntimeError, match=message):
            build(*values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_must_be_finite(bad):
    features = P.clone()
    features[1, 2, 7] = bad
    with pytest.raises(RuntimeError, match="features must be finite, got NaN or infinity"):
        build(features)


def test_the_public_function_needs_no_blocks():
    values, features = points(1, 2, 3, 70)
    assert torch.equal(exact_gaussian_filter(values, features), op(values, features))
