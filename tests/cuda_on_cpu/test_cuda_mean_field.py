"""The CUDA mean field, run on the CPU (tests/cuda_on_cpu), and its reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastseg import reference
from tests.crf.test_lattice_mean_field import (
    COMPAT,
    HIGH,
    QUALITIES,
    assert_close,
    assert_log_is,
    both_terms,
    confident,
    energies,
    potts,
    problem,
)
from tests.cuda_on_cpu.build import cuda_home

ops = torch.ops.fastseg_cuda_on_cpu
NONE, BEFORE, AFTER, SYMMETRIC = range(4)

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]


def check(*arguments, atol=1e-5):
    q = ops.lattice_mean_field(*arguments)
    assert_close(q, reference.lattice_mean_field(*arguments), atol)
    return q


@pytest.mark.parametrize("name", ["none", "before", "after", "symmetric"])
def test_pydensecrf(shared_data, order, name):
    """Its own results, in one order of threads: the others give the same bits."""
    if order != "forward":
        pytest.skip("test_the_order_of_threads_does_not_matter")
    golden = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    unary = energies(golden["logits_q"])[None]
    code = ["none", "before", "after", "symmetric"].index(name)
    terms = both_terms(golden["image"], 3, 3, 30, 13, 10, code)
    # Sums without normalisation are so large that float64 is off by 2e-3 after five.
    iterations = 1 if name == "none" else 5
    q = ops.lattice_mean_field(unary, *terms, iterations, *COMPAT)[0]
    assert_close(q.flatten(1), golden[f"norm_{name}_Q{iterations}"])


@QUALITIES
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 15), (3, 4, 5)], ids=str)
def test_sizes(size, quality):
    check(*problem(2, 5, size), 2, *quality)


@QUALITIES
def test_one_axis(quality):
    unary, (sigma, features), mu, norms = problem(2, 3, (1, 70))
    check(unary[:, :, 0], [sigma[1:], features[:, :, 0]], mu, norms, 2, *quality)


@QUALITIES
@pytest.mark.parametrize("labels", [1, 2, 6, 12, 21, 40, 100, 150, 400])
def test_labels(labels, quality):
    """Each width of the softmax; tiles of 128 and of 64 points; Q in global memory at last."""
    check(*problem(1, labels, (10, 13)), 1, *quality)


@QUALITIES
@pytest.mark.parametrize("kind", ["potts", "diagonal", "full"])
@pytest.mark.parametrize("normalization", [NONE, BEFORE, AFTER, SYMMETRIC])
def test_normalization_and_compatibility(normalization, kind, quality):
    unary, kernels, _, _ = problem(2, 6, (9, 8))
    shape = {"potts": (), "diagonal": (6,), "full": (6, 6)}[kind]
    mu = [torch.randn(shape), torch.randn(shape)]
    check(unary, kernels, mu, [normalization, SYMMETRIC], 2, *quality)
    check(unary, kernels, mu, [SYMMETRIC, normalization], 2, *quality)


@QUALITIES
def test_other_sets_of_terms(quality):
    unary, (sigma, features), _, _ = problem(2, 5, (9, 8))
    full = torch.randn(5, 5)
    for kernels in (
        [], [sigma], [features[:1]], [features, features[1:] / 2],
        [sigma, features, features[:, :3], sigma / 2, features[:1, :4]], [sigma, features] * 4,
    ):  # fmt: skip
        mu = [potts(1.3), full, torch.linspace(-1, 0, 5), potts(-1), potts(0)] + [potts(0.1)] * 3
        norms = [SYMMETRIC, AFTER, BEFORE, NONE, AFTER, SYMMETRIC, BEFORE, AFTER]
        count = len(kernels)
        check(unary, kernels, mu[:count], norms[:count], 2, *quality)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_gaussians_with_more_axes_than_the_blur_has_launches(count):
    """Each launch of a blur takes one axis along; what is left over goes alone."""
    unary, (sigma, features), mu, _ = problem(2, 5, (3, 4, 5))
    kernels = [sigma, sigma / 2, sigma * 2, *[features[:, i : i + 1] for i in range(count)]]
    mu = [potts(0.3), torch.randn(5, 5), potts(1), *[potts(0.5)] * count]
    check(unary, kernels, mu, [SYMMETRIC, AFTER, BEFORE] + [SYMMETRIC] * count, 2, *HIGH)


@pytest.mark.parametrize(
    "quality",
    [(0, 1.3, 0, 2, False), (1, 0.8, 1, 1, True), (0, 1.0, 2, 2, True)],
    ids=str,
)
def test_other_lattices(quality):
    unary, kernels, mu, _ = problem(2, 5, (9, 8))
    check(unary, kernels, mu, [AFTER, SYMMETRIC], 2, *quality)


@QUALITIES
@pytest.mark.parametrize("labels", [3, 21])
def test_layouts(labels, quality):
    unary, kernels, mu, norms = problem(2, labels, (9, 15))
    expected = reference.lattice_mean_field(unary, kernels, mu, norms, 2, *quality)
    wide = torch.zeros(2, 2 * labels, 15, 9).permute(0, 1, 3, 2)[:, ::2]
    last = unary.contiguous(memory_format=torch.channels_last)
    for x in (last, wide.copy_(unary)):
        q = ops.lattice_mean_field(x, kernels, mu, norms, 2, *quality)
        assert_close(q, expected, 1e-5)
    q = ops.lattice_mean_field(last, kernels, mu, norms, 2, *quality)
    assert q.stride() == last.stride()
    volume = problem(1, labels, (3, 4, 5))
    last = volume[0].contiguous(memory_format=torch.channels_last_3d)
    q = ops.lattice_mean_field(last, *volume[1:], 2, *quality)
    assert q.stride() == last.stride()
    assert_close(q, reference.lattice_mean_field(*volume, 2, *quality), 1e-5)


@QUALITIES
@pytest.mark.parametrize("labels", [1, 2, 6, 12, 21, 40, 100, 150, 400])
def test_log_q(labels, quality):
    """Each width of the softmax, as in test_labels."""
    unary, *others = (*confident(labels, (10, 13)), 1, *quality)
    expected = reference.lattice_mean_field(unary, *others, log=True)
    for x in (unary, unary.contiguous(memory_format=torch.channels_last)):
        assert_log_is(ops.lattice_mean_field(x, *others, log=True), expected)


def test_energies_of_any_size():
    """Messages beyond the range of exp, labels that are ruled out, energies far from zero."""
    unary, kernels, _, norms = problem(1, 5, (9, 8))
    unary = unary + 1000
    unary[:, 2, 3:6] = torch.inf
    unary[:, :, 5, 5:7] = torch.tensor([1.0, 0, 0, 0, 0])[:, None].log().neg()
    for weight in (0.0, 3.0, -300.0, 1e5):
        arguments = (unary, kernels, [potts(weight), potts(weight)], norms, 2, *COMPAT)
        q = ops.lattice_mean_field(*arguments)
        assert torch.isfinite(q).all()
        assert_close(q.sum(1), torch.ones_like(q[:, 0]), 1e-5)
        assert (q[:, 2, 3:6] == 0).all()
        if weight < 10:  # else a rounding decides between labels
            assert_close(q, reference.lattice_mean_field(*arguments), 2e-4)


def test_nan_spreads():
    unary, kernels, mu, norms = problem(2, 5, (6, 7))
    unary[0, 2, 3, 3] = torch.nan
    q = ops.lattice_mean_field(unary, kernels, mu, norms, 1, *HIGH)
    assert q[0, :, 3, 3].isnan().all()
    assert q[1].isfinite().all()


def test_no_iterations_and_no_images():
    unary, kernels, mu, norms = problem(2, 5, (6, 7))
    check(unary, kernels, mu, norms, 0, *COMPAT)
    none = [kernels[0], kernels[1][:0]]
    assert ops.lattice_mean_field(unary[:0], none, mu, norms, 3, *COMPAT).shape == (0, 5, 6, 7)


@QUALITIES
def test_the_order_of_threads_does_not_matter(order, quality, monkeypatch):
    arguments = (*problem(2, 5, (9, 15)), 2, *quality)
    expected = ops.lattice_mean_field(*arguments)
    monkeypatch.setenv("CUDA_ON_CPU_ORDER", "reverse" if order == "forward" else "forward")
    assert torch.equal(ops.lattice_mean_field(*arguments), expected)


CAPTURED_SIZES = [(1, 1), (9, 15), (3, 4, 5), (24, 40)]


@QUALITIES
@pytest.mark.parametrize("size", CAPTURED_SIZES, ids=str)
def test_a_capture_gives_the_same_bits(size, quality, monkeypatch):
    """Smooth features, as those of photos: vertices are fewer than points' corners."""
    unary, kernels, mu, norms = problem(2, 5, size)
    for quality_of in (quality, (0, 1.3, 0, 2, False)):
        arguments = (unary, kernels, mu, norms, 2, *quality_of)
        expected = ops.lattice_mean_field(*arguments)
        monkeypatch.setenv("CUDA_ON_CPU_CAPTURES", "1")
        assert torch.equal(ops.lattice_mean_field(*arguments), expected)
        monkeypatch.delenv("CUDA_ON_CPU_CAPTURES")


@QUALITIES
def test_a_capture_cannot_refuse_features(quality, monkeypatch):
    """Where the host would have raised, Q is NaN."""
    unary, (sigma, features), mu, norms = problem(2, 5, (6, 7))
    for value in (torch.nan, torch.inf, 1e30):
        bad = features.clone()
        bad[1, 0, 2, 3] = value
        arguments = (unary, [sigma, bad], mu, norms, 1, *quality)
        with pytest.raises(RuntimeError, match="features must be"):
            ops.lattice_mean_field(*arguments)
        monkeypatch.setenv("CUDA_ON_CPU_CAPTURES", "1")
        for x in (unary, unary.contiguous(memory_format=torch.channels_last)):
            assert ops.lattice_mean_field(x, *arguments[1:]).isnan().all()
        monkeypatch.delenv("CUDA_ON_CPU_CAPTURES")


def test_a_capture_has_memory_for_points_that_share_no_vertex(monkeypatch):
    """Of these, and of as many that are added: with all neighbours there would be more."""
    unary = torch.rand(2, 3, 4, 5)
    features = torch.rand(2, 5, 4, 5) * 1e4
    arguments = (unary, [features], [potts(1)], [AFTER], 1)
    high, all_neighbors = HIGH, (*HIGH[:2], 1, *HIGH[3:])
    expected = ops.lattice_mean_field(*arguments, *high)
    assert ops.lattice_mean_field(*arguments, *all_neighbors).isfinite().all()
    monkeypatch.setenv("CUDA_ON_CPU_CAPTURES", "1")
    assert torch.equal(ops.lattice_mean_field(*arguments, *high), expected)
    assert ops.lattice_mean_field(*arguments, *all_neighbors).isnan().all()


UNARY = torch.rand(2, 3, 8, 9)
FEATURES = torch.rand(2, 4, 8, 9)
BAD = {
    "sigma": ([torch.zeros(2)], [potts(1)], "sigma must be positive"),
    "NaN sigma": ([torch.ones(2) * torch.nan], [potts(1)], "sigma must be positive"),
    "NaN feature": ([FEATURES * torch.nan], [potts(1)], "features must be finite"),
    "9 features": ([FEATURES.repeat(1, 3, 1, 1)], [potts(1)], "kernels must have 1 to 8"),
    "NaN mu": ([FEATURES], [potts(torch.nan)], "compatibility must be finite"),
    "infinite mu": ([FEATURES], [torch.full((3, 3), torch.inf)], "compatibility must be finite"),
    "terms": ([FEATURES] * 9, [potts(1)] * 9, "kernels must be at most 8"),
}


@QUALITIES
@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, quality):
    kernels, mu, message = BAD[name]
    with pytest.raises(RuntimeError, match=message):
        ops.lattice_mean_field(UNARY, kernels, mu, [SYMMETRIC] * len(mu), 1, *quality)
