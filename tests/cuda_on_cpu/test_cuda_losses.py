"""The CUDA kernels of losses, run on the CPU (tests/cuda_on_cpu), and the references in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import load
from tests.head.loss_cases import (
    CASES,
    IGNORED,
    TOLERANCES,
    LossCase,
    assert_grad_near,
    assert_near,
    tensors,
    torch_loss,
    upsampled,
)
from tests.head.test_upsample_cross_entropy import factors

ops = torch.ops.fastseg_cuda_on_cpu
SMALL = LossCase(2, 4, (4, 5), (19, 23))
# Several tiles of columns; bands for a source row; chunks of classes; logits larger than the map,
# with fewer columns in a tile.
MORE = (
    LossCase(1, 5, (3, 41), (9, 300)),
    LossCase(2, 2, (1, 2), (70, 140)),
    LossCase(1, 150, (3, 7), (9, 22)),
    LossCase(1, 40, (3, 100), (3, 100)),
    LossCase(1, 3, (50, 700), (4, 9)),
    LossCase(1, 300, (2, 2), (39, 5)),
)

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
each_case = pytest.mark.parametrize("case", [c for c in CASES if c.batch] + list(MORE), ids=str)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
each_corners = pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])


@pytest.fixture(scope="module", autouse=True)
def library():
    """The ops, loaded."""
    return load()


def random(shape, like):
    """Numbers of the dtype in which losses are computed, which float32 holds."""
    generator = torch.Generator().manual_seed(3)
    numbers = torch.rand(shape, generator=generator)
    return numbers.to(torch.float64 if like.dtype == torch.float64 else torch.float32)


def compare_cross_entropy(
    logits,
    target,
    tolerance,
    *,
    align_corners=False,
    weight=None,
    weight_map=None,
    smoothing=0.0,
    reduction="mean",
    grad_tolerance=None,
):
    """Value and gradient beside those of the reference in float64; returns both."""
    shared = (align_corners, IGNORED, smoothing)
    loss, total, kept = ops.upsample_cross_entropy(
        logits, target, weight, weight_map, *shared, reduction
    )
    z, w, m = (t if t is None else t.double() for t in (logits, weight, weight_map))
    expected = reference.upsample_cross_entropy(z, target, w, m, *shared, reduction)
    assert_near(loss, expected[0], tolerance)
    assert_near(total, expected[1], tolerance)
    grad = random(target.shape, logits)
    if reduction != "none":
        grad = grad.flatten()[:1].view(1, 1, 1).expand(target.shape)
    actual = ops.upsample_cross_entropy_backward(
        grad, logits, target, kept, weight, weight_map, *shared
    )
    wanted = reference.upsample_cross_entropy_backward(
        grad.double(), z, target, expected[2], w, m, *shared
    )
    assert actual.dtype == logits.dtype
    assert_grad_near(actual, wanted, grad_tolerance or tolerance)
    return loss, actual


def compare_sums(logits, target, tolerance, *, align_corners=False, squared=False):
    """The same of the sums of probabilities, where the pixels' gradients may nearly cancel."""
    options = (align_corners, IGNORED, squared)
    *sums, kept = ops.upsample_softmax_sums(logits, target, *options)
    z = logits.double()
    *expected, normalizer = reference.upsample_softmax_sums(z, target, *options)
    for actual, wanted in zip(sums, expected, strict=True):
        assert_near(actual, wanted, tolerance)
    assert torch.equal(sums[2].double(), expected[2])
    grads = [random(logits.shape[:2], logits) - shift for shift in (0.2, 0.7)]
    actual = ops.upsample_softmax_sums_backward(*grads, logits, target, kept, *options)
    wanted = reference.upsample_softmax_sums_backward(
        *(g.double() for g in grads), z, target, normalizer, *options
    )
    assert actual.dtype == logits.dtype
    assert_grad_near(actual, wanted, 4 * tolerance)
    return *sums, actual


@each_corners
@each_case
def test_cross_entropy(case, align_corners):
    logits, target = tensors(case)
    weight, weight_map = factors(case, torch.float32)
    options = {"align_corners": align_corners}
    compare_cross_entropy(logits, target, 1e-4, **options)
    compare_cross_entropy(logits, target, 1e-4, smoothing=0.3, reduction="none", **options)
    options |= {"weight": weight, "weight_map": weight_map}
    compare_cross_entropy(logits, target, 1e-4, reduction="sum", **options)
    compare_cross_entropy(logits, target, 1e-4, smoothing=0.3, **options)


@each_corners
@each_case
def test_softmax_sums(case, align_corners):
    logits, target = tensors(case)
    for squared in (False, True):
        compare_sums(logits, target, 1e-4, align_corners=align_corners, squared=squared)


@each_dtype
def test_dtypes(dtype):
    tolerance = TOLERANCES[dtype]
    for case in (SMALL, *MORE[1:4]):
        logits, target = tensors(case, dtype)
        weight, weight_map = (t.to(random((), logits)) for t in factors(case, torch.float32))
        options = {"weight": weight, "weight_map": weight_map, "smoothing": 0.1}
        compare_cross_entropy(logits, target, tolerance, **options)
        compare_sums(logits, target, tolerance)
    for ids in (torch.uint8, torch.int32):
        compare_cross_entropy(logits, target.to(ids), tolerance)
        compare_sums(logits, target.to(ids), tolerance)


def test_layouts():
    """Logits of any strides, and a gradient in their layout."""
    logits, target = tensors(SMALL)
    n, c, h, w = logits.shape
    holes = logits.new_zeros(n, c, 2 * h, 3 * w)[:, :, ::2, ::3].copy_(logits)
    last = logits.contiguous(memory_format=torch.channels_last)
    flipped = logits.mT.contiguous().mT
    across = target.mT.contiguous().mT
    map_of_all = random(target.shape[1:], logits).expand(target.shape)
    for z in (holes, last, flipped, logits[:1].expand(2, -1, -1, -1)):
        _, grad = compare_cross_entropy(z, across, 1e-4, weight_map=map_of_all)
        _, _, _, same = compare_sums(z, across, 1e-4)
        if z is last:
            assert grad.is_contiguous(memory_format=torch.channels_last)
            assert same.is_contiguous(memory_format=torch.channels_last)
    many, target = tensors(MORE[2])
    compare_cross_entropy(many.contiguous(memory_format=torch.channels_last), target, 1e-4)


def test_every_order_gives_the_same_bits(order, monkeypatch):
    if order != "forward":
        pytest.skip("this one compares all three")
    logits, target = tensors(LossCase(2, 7, (9, 17), (65, 150)))
    weight, weight_map = factors(LossCase(2, 7, (9, 17), (65, 150)), torch.float32)
    results = []
    for name in ("forward", "reverse", "shuffled"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", name)
        options = {"weight": weight, "weight_map": weight_map, "smoothing": 0.2}
        losses = compare_cross_entropy(logits, target, 1e-4, **options)
        results.append((*losses, *compare_sums(logits, target, 1e-4, squared=True)))
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_all_ignored(smoothing):
    """torch's mean of nothing is NaN, and its gradient 0, whatever the logits."""
    logits, target = tensors(SMALL)
    logits[0, 1], logits[1, 2] = float("nan"), float("inf")
    target = torch.full_like(target, IGNORED)
    shared = (False, IGNORED, smoothing)
    for reduction, value in (("mean", float("nan")), ("sum", 0.0)):
        loss, total, kept = ops.upsample_cross_entropy(
            logits, target, None, None, *shared, reduction
        )
        torch.testing.assert_close(loss, torch.tensor(value), equal_nan=True)
        assert total == 0
        assert not kept.any()
        grad = ops.upsample_cross_entropy_backward(
            torch.ones(target.shape), logits, target, kept, None, None, *shared
        )
        assert not grad.any()
    *sums, kept = ops.upsample_softmax_sums(logits, target, False, IGNORED, False)
    assert not any(t.any() for t in (*sums, kept))
    grad = ops.upsample_softmax_sums_backward(
        sums[0] + 1, sums[1] + 1, logits, target, kept, False, IGNORED, False
    )
    assert not grad.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("size", [(19, 24), (4, 5), (3, 2)], ids=str)
@each_corners
def test_special_values(value, size, align_corners):
    """What is undefined in torch is undefined, and nothing else."""
    logits, target = tensors(LossCase(1, 4, (4, 5), size))
    target = target.clamp_max(3)
    logits[0, 1, 2, 3] = value
    for smoothing in (0.0, 0.1):
        theirs = logits.clone().requires_grad_()
        options = {"align_corners": align_corners, "label_smoothing": smoothing}
        expected = torch_loss(theirs, target, reduction="none", **options)
        shared = (align_corners, IGNORED, smoothing)
        loss, _, kept = ops.upsample_cross_entropy(logits, target, None, None, *shared, "none")
        assert torch.equal(loss.isnan(), expected.isnan())
        torch.testing.assert_close(loss, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
        finite = expected.isfinite()
        (wanted,) = torch.autograd.grad(expected[finite].sum(), theirs)
        grad = ops.upsample_cross_entropy_backward(
            finite.float(), logits, target, kept, None, None, *shared
        )
        known = grad.isfinite() & wanted.isfinite()
        torch.testing.assert_close(grad[known], wanted[known], rtol=1e-3, atol=1e-4)
        if bool(expected.isnan().any()):
            assert grad.isnan().any()
    p = upsampled(logits, target, align_corners).softmax(1)
    hit = F.one_hot(target, 4).movedim(-1, 1)
    sums = ops.upsample_softmax_sums(logits, target, align_corners, IGNORED, False)
    for actual, wanted in zip(sums, (p.where(hit == 1, 0), p, hit), strict=False):
        expected = wanted.sum((2, 3)).to(actual.dtype)
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e2, 1e3, 1e4])
def test_large_logits(scale):
    """Where all logits of a pixel lie far below the largest of its corners, no power vanishes.

    Errors of probabilities are those of the exponents, whose rounding grows with them.
    """
    logits, target = tensors(LossCase(1, 4, (6, 7), (41, 43)))
    logits = logits * scale
    compare_cross_entropy(logits, target, 1e-6, grad_tolerance=4e-7 * scale)
    sums = ops.upsample_softmax_sums(logits, target, False, IGNORED, False)[:2]
    expected = reference.upsample_softmax_sums(logits.double(), target, False, IGNORED, False)
    for actual, wanted in zip(sums, expected, strict=False):
        assert_near(actual, wanted, 4e-7 * scale)


def test_least_numbers():
    """Classes that are masked by the least number of all: finite losses, and torch's gradients."""
    logits, target = tensors(SMALL)
    logits[:, 3] = torch.finfo(torch.float32).min
    compare_cross_entropy(logits, target.clamp_max(2), 1e-5)
    compare_sums(logits, target.clamp_max(2), 1e-5)
    options = (False, IGNORED, 0.1)
    loss, _, kept = ops.upsample_cross_entropy(logits, target, None, None, *options, "mean")
    assert loss.isfinite()
    theirs = logits.double().requires_grad_()
    full = torch_loss(theirs, target, ignore_index=IGNORED, label_smoothing=0.1, reduction="sum")
    (wanted,) = torch.autograd.grad(full, theirs)
    grad = ops.upsample_cross_entropy_backward(
        torch.ones(target.shape), logits, target, kept, None, None, *options
    )
    assert_grad_near(grad, wanted, 1e-5)


def test_empty_batch():
    logits, target = tensors(LossCase(0, 3, (4, 4), (9, 9)))
    for reduction, value in (("mean", float("nan")), ("sum", 0.0)):
        loss, total, kept = ops.upsample_cross_entropy(
            logits, target, None, None, False, IGNORED, 0.0, reduction
        )
        torch.testing.assert_close(loss, torch.tensor(value), equal_nan=True)
        assert total == 0
    grad = ops.upsample_cross_entropy_backward(
        kept, logits, target, kept, None, None, False, IGNORED, 0.0
    )
    assert grad.shape == logits.shape
    *sums, kept = ops.upsample_softmax_sums(logits, target, False, IGNORED, False)
    grad = ops.upsample_softmax_sums_backward(
        *sums[:2], logits, target, kept, False, IGNORED, False
    )
    assert grad.shape == logits.shape


@pytest.mark.parametrize("bad", [-1, 4, 2**32, -(2**63)])
def test_a_target_that_is_no_class_stops_the_op(bad):
    logits, good = tensors(SMALL)
    target = good.clone()
    target[1, 7, 9] = bad
    message = "target must be a class or ignore_index"
    options = (False, IGNORED, 0.0)
    with pytest.raises(RuntimeError, match=f"upsample_cross_entropy: {message}"):
        ops.upsample_cross_entropy(logits, target, None, None, *options, "mean")
    with pytest.raises(RuntimeError, match=f"upsample_softmax_sums: {message}"):
        ops.upsample_softmax_sums(logits, target, False, IGNORED, False)
    kept = torch.zeros(target.shape)
    with pytest.raises(RuntimeError, match=f"upsample_cross_entropy_backward: {message}"):
        ops.upsample_cross_entropy_backward(kept, logits, target, kept, None, None, *options)
    sums = torch.zeros(2, 4)
    with pytest.raises(RuntimeError, match=f"upsample_softmax_sums_backward: {message}"):
        ops.upsample_softmax_sums_backward(sums, sums, logits, target, kept, False, IGNORED, False)
