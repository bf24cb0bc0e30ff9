"""Losses that are made from the pixels' cross-entropies and from sums of probabilities."""

from __future__ import annotations

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import reference
from tests.head.loss_cases import (
    CASES,
    IGNORED,
    TOLERANCES,
    LossCase,
    assert_grad_near,
    assert_near,
    tensors,
    upsampled,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory", "one_thread")
ops = torch.ops.fastseg
SMALL = LossCase(3, 5, (4, 5), (19, 23))
each_case = pytest.mark.parametrize("case", CASES, ids=str)


def compare(ours, theirs, case=SMALL, dtype=torch.float32, tolerance=3e-5):
    """A loss of logits and one of upsampled logits: values and gradients, the second in float64."""
    logits, target = tensors(case, dtype)
    a, b = logits.clone().requires_grad_(), logits.double().requires_grad_()
    actual, expected = ours(a, target), theirs(upsampled(b, target), target)
    assert actual.dtype == dtype
    assert_near(actual, expected, tolerance)
    grad = torch.rand(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    actual.backward(grad.to(dtype))
    expected.backward(grad)
    assert_grad_near(a.grad, b.grad, tolerance)


def dice(
    full,
    target,
    *,
    jaccard=False,
    squared=False,
    smooth_numerator=1e-5,
    smooth_denominator=1e-5,
    over_batch=False,
    absent="counted",
    log=False,
):
    """The losses of classes, (N, C) or (C,), from probabilities and one-hot targets."""
    kept = (target != IGNORED)[:, None]
    p = full.softmax(1) * kept
    t = F.one_hot(torch.where(target == IGNORED, 0, target), full.shape[1]).movedim(-1, 1) * kept
    over = (0, 2, 3) if over_batch else (2, 3)
    i, total, count = (p * t).sum(over), (p**2 if squared else p).sum(over), t.sum(over)
    union = 2 * (total + count - i) if jaccard else total + count
    score = (2 * i + smooth_numerator) / (union + smooth_denominator).clamp_min(1e-7)
    loss = -score.clamp_min(1e-7).log() if log else 1 - score
    return torch.where(count > 0, loss, 0) if absent == "zero" else loss


@pytest.mark.parametrize("jaccard", [False, True])
@pytest.mark.parametrize("squared", [False, True])
def test_dice(jaccard, squared, simd_level):
    for over_batch, absent, log in itertools.product((False, True), ("counted", "zero"), (0, 1)):
        options = {
            "jaccard": jaccard,
            "squared": squared,
            "smooth_numerator": 0.25,
            "smooth_denominator": 0.5,
            "over_batch": over_batch,
            "absent": absent,
            "log": bool(log),
        }
        compare(
            lambda z, t, o=options: fastseg.upsample_dice_loss(
                z, t, reduction="none", ignore_index=IGNORED, **o
            ),
            lambda full, t, o=options: dice(full, t, **o),
        )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
@each_case
def test_dice_of_all_sizes_and_dtypes(case, dtype, simd_level):
    compare(
        lambda z, t: fastseg.upsample_dice_loss(z, t, ignore_index=IGNORED, reduction="none"),
        dice,
        case,
        dtype,
        TOLERANCES[dtype],
    )


def test_dice_of_some_classes():
    """Without the background, each class by its weight."""
    weight = torch.tensor([1.0, 2.0, 0.0, 3.0])
    compare(
        lambda z, t: fastseg.upsample_dice_loss(
            z, t, classes=range(1, 5), weight=weight, ignore_index=IGNORED, reduction="sum"
        ),
        lambda full, t: (dice(full, t)[:, 1:] * weight).sum(),
    )


def test_a_class_without_pixels():
    logits, target = tensors(SMALL)
    target = target.clamp_max(3)
    for absent, value in (("zero", 0.0), ("counted", 1.0)):
        loss = fastseg.upsample_dice_loss(logits, target, absent=absent, reduction="none")
        torch.testing.assert_close(loss[:, 4], torch.full((3,), value), rtol=0, atol=1e-3)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_focal(gamma, reduction):
    alpha = torch.tensor([1.0, 0.5, 2.0, 3.0, 0.1])

    def theirs(full, target):
        ce = F.cross_entropy(full, target, reduction="none", ignore_index=IGNORED)
        weight = alpha[torch.where(target == IGNORED, 0, target)]
        losses = weight * (1 - (-ce).exp()) ** gamma * ce
        losses = torch.where(target == IGNORED, 0, losses)
        if reduction == "mean":
            return losses.sum() / (target != IGNORED).sum()
        return losses.sum() if reduction == "sum" else losses

    def ours(logits, target):
        return fastseg.upsample_focal_loss(
            logits,
            target,
            gamma=gamma,
            alpha=alpha,
            ignore_index=IGNORED,
            reduction=reduction,
        )

    compare(ours, theirs)


def test_focal_of_pixels_that_are_sure():
    """Where p is 1 a power below 1 has no slope; the gradient is 0 and not undefined."""
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1] = 200.0
    leaf = logits.requires_grad_()
    target = torch.ones(1, 5, 5, dtype=torch.int64)
    fastseg.upsample_focal_loss(leaf, target, gamma=0.5).backward()
    assert not leaf.grad.any()


@pytest.mark.parametrize("threshold", [0.02, 0.7])
@pytest.mark.parametrize("min_kept", [0, 10, 200, 5000])
def test_ohem(threshold, min_kept):
    """mmsegmentation's OHEMPixelSampler, by a sort."""

    def theirs(full, target):
        valid = target != IGNORED
        p = full.detach().softmax(1).gather(1, torch.where(valid, target, 0)[:, None])[:, 0]
        ordered = p[valid].sort().values
        least = ordered[min(min_kept * target.shape[0], len(ordered) - 1)]
        kept = valid & (p < least.clamp_min(threshold))
        ce = F.cross_entropy(full, target, reduction="none", ignore_index=IGNORED)
        return (ce * kept).sum() / kept.sum()

    def ours(logits, target):
        return fastseg.upsample_ohem_cross_entropy(
            logits, target, threshold=threshold, min_kept=min_kept, ignore_index=IGNORED
        )

    compare(ours, theirs, dtype=torch.float64, tolerance=1e-10)


def test_ohem_of_pixels_that_are_all_easy_is_0():
    logits = torch.zeros(2, 3, 4, 5)
    logits[:, 1] = 9
    logits.requires_grad_()
    target = torch.ones(2, 8, 10, dtype=torch.int64)
    target[1] = IGNORED
    ohem = functools.partial(fastseg.upsample_ohem_cross_entropy, min_kept=0, ignore_index=IGNORED)
    loss = ohem(logits, target)
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()
    assert ohem(logits, torch.full_like(target, IGNORED)).isnan()  # as of the other losses


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("min_kept", [0, 10, 10_000])
def test_ohem_shows_a_nan(min_kept, everywhere):
    logits = torch.randn(2, 3, 4, 5)
    logits[... if everywhere else (0, 1, 2, 3)] = torch.nan
    target = torch.ones(2, 8, 10, dtype=torch.int64)
    assert fastseg.upsample_ohem_cross_entropy(logits, target, min_kept=min_kept).isnan()


@pytest.mark.parametrize("case", [c for c in CASES if c.batch], ids=str)  # torch needs an image
def test_reference(case):
    """The formulas that run where no kernel does."""
    logits, target = tensors(case, torch.float64)
    for align_corners, squared in itertools.product((False, True), repeat=2):
        options = (align_corners, IGNORED, squared)
        expected = reference.upsample_softmax_sums(logits, target, *options)
        actual = ops.upsample_softmax_sums(logits, target, *options)
        for a, e in zip(actual[:3], expected[:3], strict=True):
            torch.testing.assert_close(a, e)
        grads = torch.randn_like(expected[0]), torch.randn_like(expected[1])
        torch.testing.assert_close(
            ops.upsample_softmax_sums_backward(*grads, logits, target, actual[3], *options),
            reference.upsample_softmax_sums_backward(*grads, logits, target, expected[3], *options),
        )


@pytest.mark.parametrize("squared", [False, True])
def test_gradcheck(squared):
    logits, target = tensors(SMALL, torch.float64)

    def sums(x):
        return ops.upsample_softmax_sums(x, target, False, IGNORED, squared)[:2]

    assert torch.autograd.gradcheck(sums, logits.requires_grad_(), fast_mode=True)


def test_opcheck():
    logits, target = tensors(SMALL)
    op = ops.upsample_softmax_sums.default
    torch.library.opcheck(op, (logits.clone().requires_grad_(), target, False, IGNORED, True))
    sums = op(logits, target, False, IGNORED, True)
    arguments = (sums[0], sums[1], logits, target, sums[3], False, IGNORED, True)
    torch.library.opcheck(ops.upsample_softmax_sums_backward.default, arguments)


LOSSES = {
    "dice": fastseg.nn.UpsampleDiceLoss(ignore_index=IGNORED, classes=(1, 2), over_batch=True),
    "focal": fastseg.nn.UpsampleFocalLoss(ignore_index=IGNORED, alpha=torch.rand(5)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_compile_and_export(name):
    logits, target = tensors(SMALL)
    module = LOSSES[name]
    expected = module(logits, target)
    torch.testing.assert_close(torch.compile(module, fullgraph=True)(logits, target), expected)
    exported = torch.export.export(module, (logits, target)).module()
    torch.testing.assert_close(exported(logits, target), expected)


@pytest.mark.parametrize(
    "loss",
    [
        fastseg.upsample_dice_loss,
        fastseg.upsample_focal_loss,
        fastseg.upsample_ohem_cross_entropy,
    ],
    ids=lambda f: f.__name__,
)
def test_number_of_threads_changes_nothing(loss):
    logits, target = tensors(LossCase(3, 7, (9, 17), (65, 129)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            value = loss(leaf, target, ignore_index=IGNORED)
            value.backward()
            results.append((value.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for value, grad in results[1:]:
        assert torch.equal(value, results[0][0])
        assert torch.equal(grad, results[0][1])


def test_undefined_logits():
    """One undefined logit makes all of its image's sums undefined, as in torch, unless ignored."""
    logits, target = tensors(SMALL)
    logits[1, 2, 2, 2] = float("nan")
    loss = fastseg.upsample_dice_loss(logits, target, ignore_index=IGNORED, reduction="none")
    assert loss.isnan().sum(1).tolist() == [0, 5, 0]
    ignored = target.clone()
    ignored[1] = IGNORED
    assert fastseg.upsample_dice_loss(logits, ignored, ignore_index=IGNORED).isfinite()


Z, T = torch.zeros(2, 3, 4, 4), torch.zeros(2, 9, 9, dtype=torch.int64)
BAD = [
    (lambda: fastseg.upsample_dice_loss(Z, T + 3), r"target must lie in \[0, 2\].*got 3"),
    (lambda: fastseg.upsample_dice_loss(Z, T, reduction="all"), "reduction must be"),
    (lambda: fastseg.upsample_dice_loss(Z, T, absent="never"), 'absent must be "counted" or'),
    (lambda: fastseg.upsample_dice_loss(Z, T, classes=[3]), r"classes must be some of 0 to 2"),
    (lambda: fastseg.upsample_dice_loss(Z, T, classes=[]), r"classes must be some of 0 to 2"),
    (lambda: fastseg.upsample_dice_loss(Z, T, weight=torch.ones(2)), r"weight must have .* \(3,\)"),
    (lambda: fastseg.upsample_focal_loss(Z, T, gamma=-1.0), "gamma must be at least 0, got -1.0"),
    (
        lambda: fastseg.upsample_focal_loss(Z, T, gamma=math.nan),
        "gamma must be at least 0, got nan",
    ),
    (lambda: fastseg.upsample_focal_loss(Z, T, alpha=torch.ones(2)), "alpha must have the shape"),
    (lambda: fastseg.upsample_focal_loss(Z, T.float()), "target must be int64"),
    (lambda: fastseg.upsample_focal_loss(Z, T, reduction="all"), "reduction must be"),
    (lambda: fastseg.upsample_ohem_cross_entropy(Z, T, min_kept=-1), "min_kept must be"),
    (lambda: fastseg.upsample_ohem_cross_entropy(Z, T, weight=torch.ones(2)), "weight must have"),
    (lambda: fastseg.upsample_ohem_cross_entropy(Z, T - 1), "target must lie in"),
]


@pytest.mark.parametrize("classes", [1, [1.0, 2.0], [False, True, True], ["1"]], ids=str)
def test_classes_are_integers(classes):
    """A list of booleans or of floats would pick others than it seems to."""
    with pytest.raises(TypeError, match=r"upsample_dice_loss: classes must be integers.*got"):
        fastseg.upsample_dice_loss(Z, T, classes=classes)


@pytest.mark.parametrize(("call", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
def test_bad_input(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()
