"""fastseg.upsample_cross_entropy beside F.interpolate and F.cross_entropy in float64."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
    torch_loss,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory", "one_thread")
ops = torch.ops.fastseg
LOSS = fastseg.upsample_cross_entropy
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=lambda d: str(d)[6:])
each_corners = pytest.mark.parametrize("align_corners", [False, True])
SMALL = LossCase(2, 4, (4, 5), (19, 23))


def factors(case, dtype):
    """Weights of classes and of pixels."""
    generator = torch.Generator().manual_seed(7)
    weight = torch.rand(case.classes, generator=generator, dtype=dtype) + 0.1
    weight_map = torch.rand((case.batch, *case.size), generator=generator, dtype=dtype) + 0.1
    return weight, weight_map


def compare(logits, target, tolerance, **options):
    """Values and gradients beside those of torch in float64."""
    ours = logits.detach().requires_grad_()
    theirs = logits.detach().double().requires_grad_()
    actual = LOSS(ours, target, **options)
    wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    expected = torch_loss(theirs, target, **wide)
    assert actual.dtype == logits.dtype
    assert_near(actual, expected, tolerance)
    grad = torch.rand(expected.shape, generator=torch.Generator().manual_seed(3)).double()
    actual.backward(grad.to(actual.dtype))
    expected.backward(grad)
    assert_grad_near(ours.grad, theirs.grad, tolerance)
    return ours.grad


@each_corners
@each_case
def test_all_options(case, align_corners, simd_level):
    logits, target = tensors(case)
    weight, weight_map = factors(case, torch.float32)
    for smoothing, w, m, reduction in itertools.product(
        (0.0, 0.3), (None, weight), (None, weight_map), ("mean", "sum", "none")
    ):
        compare(
            logits,
            target,
            1e-4,
            align_corners=align_corners,
            weight=w,
            weight_map=m,
            label_smoothing=smoothing,
            reduction=reduction,
            ignore_index=IGNORED,
        )


@each_dtype
@each_case
def test_dtypes(case, dtype, simd_level):
    logits, target = tensors(case, dtype)
    weight, weight_map = factors(case, dtype)
    options = {"weight": weight, "weight_map": weight_map, "ignore_index": IGNORED}
    tolerance = TOLERANCES[dtype]
    compare(logits, target, tolerance, label_smoothing=0.1, **options)
    compare(logits, target, tolerance, reduction="none", **options)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_dtypes_of_targets(dtype):
    logits, target = tensors(SMALL)
    compare(logits, target.to(dtype), 1e-5, ignore_index=IGNORED)


@pytest.mark.parametrize("case", [c for c in CASES if c.batch], ids=str)  # torch needs an image
def test_reference(case):
    """The formulas that run where no kernel does."""
    logits, target = tensors(case, torch.float64)
    weight, weight_map = factors(case, torch.float64)
    leaf = logits.clone().requires_grad_()
    for w, m, align in itertools.product((None, weight), (None, weight_map), (False, True)):
        options = (align, IGNORED, 0.2)
        loss, total, normalizer = reference.upsample_cross_entropy(
            logits, target, w, m, *options, "none"
        )
        grad = torch.randn_like(loss)
        expected = torch_loss(
            leaf,
            target,
            align_corners=align,
            weight=w,
            weight_map=m,
            ignore_index=IGNORED,
            label_smoothing=0.2,
            reduction="none",
        )
        torch.testing.assert_close(loss, expected)
        actual = reference.upsample_cross_entropy_backward(
            grad, logits, target, normalizer, w, m, *options
        )
        torch.testing.assert_close(actual, torch.autograd.grad(expected, leaf, grad)[0])
        ours = ops.upsample_cross_entropy(logits, target, w, m, *options, "mean")
        mean, same_total, _ = reference.upsample_cross_entropy(
            logits, target, w, m, *options, "mean"
        )
        torch.testing.assert_close(ours[0], mean)
        torch.testing.assert_close(ours[1], total)
        torch.testing.assert_close(same_total, total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_layouts(dtype, simd_level):
    """Logits of any strides, and a gradient in their layout."""
    logits, target = tensors(SMALL, dtype)
    tolerance = max(TOLERANCES[dtype], 1e-5)
    n, c, h, w = logits.shape
    holes = logits.new_zeros(n, c, 2 * h, 3 * w)[:, :, ::2, ::3].copy_(logits)
    last = logits.contiguous(memory_format=torch.channels_last)
    flipped = logits.transpose(2, 3).contiguous().transpose(2, 3)
    for x in (holes, last, flipped, logits[:1].expand(2, -1, -1, -1)):
        grad = compare(x, target, tolerance, ignore_index=IGNORED)
        if x is last:
            assert grad.is_contiguous(memory_format=torch.channels_last)
    across = target.transpose(1, 2).contiguous().transpose(1, 2)
    compare(logits, across, tolerance, ignore_index=IGNORED)
    map_of_all = torch.rand(target.shape[1:], dtype=dtype).expand(target.shape)
    compare(logits, target, tolerance, ignore_index=IGNORED, weight_map=map_of_all)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_all_ignored(smoothing, weighted):
    """torch's mean of nothing is NaN, and its gradient 0."""
    logits, target = tensors(SMALL)
    weight = torch.rand(4) if weighted else None
    options = {"weight": weight, "label_smoothing": smoothing, "ignore_index": IGNORED}
    for reduction, value in (("mean", float("nan")), ("sum", 0.0)):
        leaf = logits.clone().requires_grad_()
        loss = LOSS(leaf, torch.full_like(target, IGNORED), reduction=reduction, **options)
        torch.testing.assert_close(loss, torch.tensor(value), equal_nan=True)
        loss.backward()
        assert not leaf.grad.any()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("size", [(19, 24), (4, 5), (3, 2)], ids=str)
@each_corners
def test_special_values(value, size, align_corners, simd_level):
    """What is undefined in torch is undefined, and nothing else."""
    case = LossCase(1, 4, (4, 5), size)
    logits, target = tensors(case)
    target = target.clamp_max(3)
    logits[0, 1, 2, 3] = value
    for smoothing in (0.0, 0.1):
        options = {"align_corners": align_corners, "label_smoothing": smoothing}
        theirs = logits.clone().requires_grad_()
        expected = torch_loss(theirs, target, reduction="none", **options)
        ours = logits.clone().requires_grad_()
        actual = LOSS(ours, target, reduction="none", **options)
        assert torch.equal(actual.isnan(), expected.isnan())
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-4, atol=1e-5)
        kept = expected.isfinite()
        (grad,) = torch.autograd.grad(actual[kept].sum(), ours)
        (wanted,) = torch.autograd.grad(expected[kept].sum(), theirs)
        known = grad.isfinite() & wanted.isfinite()
        torch.testing.assert_close(grad[known], wanted[known], rtol=1e-3, atol=1e-4)
        (grad,) = torch.autograd.grad(LOSS(ours, target, **options), ours)
        if bool(expected.isnan().any()):
            assert grad.isnan().any()


@pytest.mark.parametrize("scale", [1e2, 1e3, 1e4])
def test_large_logits(scale, simd_level):
    """Where all logits of a pixel lie far below the largest of its corners, no power vanishes."""
    logits, target = tensors(LossCase(1, 4, (6, 7), (41, 43)))
    compare(logits * scale, target, 3e-5, ignore_index=IGNORED)


def test_least_numbers(simd_level):
    """Classes that are masked by the least number of all: finite losses, and torch's gradients."""
    logits, target = tensors(SMALL)
    logits[:, 3] = torch.finfo(torch.float32).min
    compare(logits, target.clamp_max(2), 1e-5)
    ours, theirs = logits.requires_grad_(), logits.detach().double().requires_grad_()
    options = {"label_smoothing": 0.1, "ignore_index": IGNORED}
    loss = LOSS(ours, target, **options)
    assert loss.isfinite()
    loss.backward()
    torch_loss(theirs, target, **options).backward()
    assert_grad_near(ours.grad, theirs.grad, 1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_number_of_threads_changes_nothing(reduction):
    logits, target = tensors(LossCase(3, 7, (9, 17), (65, 129)))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            leaf = logits.clone().requires_grad_()
            loss = LOSS(leaf, target, ignore_index=IGNORED, reduction=reduction)
            loss.backward(torch.ones_like(loss))
            results.append((loss.detach(), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for loss, grad in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(grad, results[0][1])


@each_corners
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(align_corners, reduction):
    logits, target = tensors(SMALL, torch.float64)
    weight, weight_map = factors(SMALL, torch.float64)

    def loss(x):
        return LOSS(
            x,
            target,
            align_corners=align_corners,
            weight=weight,
            weight_map=weight_map,
            label_smoothing=0.1,
            ignore_index=IGNORED,
            reduction=reduction,
        )

    assert torch.autograd.gradcheck(loss, logits.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_opcheck(reduction):
    logits, target = tensors(SMALL)
    weight, weight_map = factors(SMALL, torch.float32)
    options = (False, IGNORED, 0.1)
    leaf = logits.requires_grad_()
    op = ops.upsample_cross_entropy.default
    torch.library.opcheck(op, (leaf, target, weight, weight_map, *options, reduction))
    torch.library.opcheck(op, (leaf, target.byte(), None, None, *options, reduction))
    logits = logits.detach().contiguous(memory_format=torch.channels_last)
    normalizer = op(logits, target, weight, weight_map, *options, "none")[2]
    arguments = (normalizer, logits, target, normalizer, weight, weight_map, *options)
    torch.library.opcheck(ops.upsample_cross_entropy_backward.default, arguments)


def test_compile():
    logits, target = tensors(SMALL)
    module = fastseg.nn.UpsampleCrossEntropyLoss(torch.rand(4), ignore_index=IGNORED)
    compiled = torch.compile(module, fullgraph=True)
    grads = []
    for loss in (module, compiled):
        leaf = logits.clone().requires_grad_()
        loss(leaf, target).backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_export():
    logits, target = tensors(SMALL)
    module = fastseg.nn.UpsampleCrossEntropyLoss(ignore_index=IGNORED, label_smoothing=0.1)
    exported = torch.export.export(module, (logits, target)).module()
    torch.testing.assert_close(exported(logits, target), module(logits, target))


def test_autocast():
    """As F.cross_entropy the loss is float32, of logits in bfloat16."""
    logits, target = tensors(SMALL, torch.bfloat16)
    leaf = logits.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSS(leaf, target, weight=torch.rand(4), ignore_index=IGNORED)
    assert loss.dtype == torch.float32
    loss.backward()
    assert leaf.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.2, "reduction": "none"}])
def test_gradient_of_the_gradient(options):
    logits, target = tensors(SMALL, torch.float64)
    weight, _ = factors(SMALL, torch.float64)
    options |= {"weight": weight, "ignore_index": IGNORED}
    leaf = logits.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: LOSS(z, target, **options), leaf)

    def hessian(loss):
        jacobian = torch.func.jacrev(lambda z: loss(z, target[:1], **options).sum())
        return torch.func.jacrev(jacobian)(logits[:1].detach())

    torch.testing.assert_close(hessian(LOSS), hessian(torch_loss))


@pytest.mark.parametrize("loss", [fastseg.upsample_focal_loss, fastseg.upsample_ohem_cross_entropy])
def test_gradient_of_the_gradient_of_losses_made_of_it(loss):
    logits, target = tensors(SMALL, torch.float64)
    leaf = logits.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda z: loss(z, target, ignore_index=IGNORED), leaf)


@pytest.mark.parametrize("name", ["weight", "weight_map"])
def test_gradients_of_weights_are_refused(name):
    logits, target = tensors(SMALL)
    weight, weight_map = factors(SMALL, torch.float32)
    factor = {"weight": weight, "weight_map": weight_map}[name].requires_grad_()
    with pytest.raises(NotImplementedError, match=f"{name} has no gradient"):
        LOSS(logits, target, ignore_index=IGNORED, **{name: factor})


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        *((torch.uint8, bad) for bad in (4, 254)),
        *((torch.int32, bad) for bad in (-1, 4, 2**31 - 1)),
        *((torch.int64, bad) for bad in (-1, 4, 2**32, -(2**63))),
    ],
)
def test_targets_that_are_no_class(bad, dtype, simd_level):
    logits, target = tensors(SMALL)
    target = target.to(dtype)
    target[1, 7, 9] = bad
    message = rf"target must lie in \[0, 3\] or be ignore_index = 255, got {bad}"
    for reduction in ("mean", "none"):
        with pytest.raises(RuntimeError, match=message):
            LOSS(logits, target, ignore_index=IGNORED, reduction=reduction)


GOOD = {
    "logits": torch.zeros(2, 3, 4, 4),
    "target": torch.zeros(2, 9, 9, dtype=torch.int64),
}
BAD = [
    ({"logits": torch.zeros(3, 4, 4)}, "logits must have the shape"),
    ({"logits": torch.zeros(2, 3, 4, 4).int()}, "logits must be float32"),
    ({"target": torch.zeros(2, 9, 9)}, "target must be int64, int32 or uint8, got"),
    ({"target": torch.zeros(2, 9, 9, dtype=torch.int16)}, "target must be int64"),
    ({"target": torch.zeros(1, 9, 9).long()}, "target must have the shape .* N = 2"),
    ({"target": torch.zeros(2, 3, 9, 9).long()}, "target must have the shape"),
    ({"target": torch.zeros(2, 0, 9).long()}, "at least one pixel"),
    ({"weight": torch.zeros(4)}, r"weight must have the shape \(C,\) = \(3,\)"),
    ({"weight": torch.zeros(3).long()}, "weight must be float32"),
    ({"weight_map": torch.zeros(2, 9, 8)}, "weight_map must have the target's shape"),
    ({"weight_map": torch.zeros(2, 9, 9).int()}, "weight_map must be float32"),
    ({"label_smoothing": 1.5}, r"label_smoothing must lie in \[0, 1\], got 1.5"),
    ({"label_smoothing": -0.1}, r"label_smoothing must lie in \[0, 1\], got -0.1"),
    ({"reduction": "all"}, 'reduction must be "none", "mean" or "sum", got "all"'),
]


@pytest.mark.parametrize(("changed", "message"), BAD, ids=lambda v: v if isinstance(v, str) else "")
@pytest.mark.parametrize("mode", ["eager", "meta"])
def test_bad_input(changed, message, mode):
    arguments = {**GOOD, **changed}
    if mode == "meta":
        arguments = {
            k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in arguments.items()
        }
    with pytest.raises(RuntimeError, match=message):
        LOSS(arguments.pop("logits"), arguments.pop("target"), **arguments)


def test_module_has_torchs_signature():
    theirs = list(inspect.signature(nn.CrossEntropyLoss).parameters)
    ours = list(inspect.signature(fastseg.nn.UpsampleCrossEntropyLoss).parameters)
    assert ours == [*theirs, "align_corners"]
    logits, target = tensors(SMALL)
    weight, weight_map = factors(SMALL, torch.float32)
    module = fastseg.nn.UpsampleCrossEntropyLoss(
        weight, ignore_index=IGNORED, reduction="sum", label_smoothing=0.1, align_corners=True
    )
    full = F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=True)
    plain = nn.CrossEntropyLoss(weight, ignore_index=IGNORED, reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(module(logits, target), plain(full, target), rtol=1e-5, atol=1e-4)
    assert module.state_dict().keys() == plain.state_dict().keys()
    module(logits, target, weight_map)
