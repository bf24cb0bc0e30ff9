"""Unary energies of tensors beside pydensecrf's of arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastseg
from fastseg.compat.pydensecrf import utils

SHAPES = [(4, 5, 6), (2, 4, 5, 6), (2, 4, 3, 5, 6), (1, 1, 2, 2), (0, 3, 4, 5)]
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_option = pytest.mark.parametrize(
    "options", [{}, {"scale": 0.7}, {"scale": 1.0, "clip": 0.01}, {"scale": 0.5, "clip": 0.2}]
)


def by_image(function, t, lead):
    """pydensecrf's function of each image of a batch, in the shape of t."""
    images = [t] if t.dim() == lead else list(t)
    return [torch.from_numpy(np.ascontiguousarray(function(image.numpy()))) for image in images]


@each_shape
@each_option
def test_softmax_is_pydensecrfs(shape, options):
    p = torch.randn(shape, dtype=torch.float64).mul(4).softmax(0 if len(shape) == 3 else 1)
    actual = fastseg.unary_from_softmax(p, **options)
    assert actual.shape == shape
    assert actual.dtype == p.dtype
    expected = by_image(lambda image: utils.unary_from_softmax(image, **options), p, 3)
    for mine, theirs in zip(
        actual.unflatten(0, (-1,)) if len(shape) > 3 else actual[None], expected, strict=True
    ):
        torch.testing.assert_close(mine.flatten(1).float(), theirs)


@each_shape
@pytest.mark.parametrize(
    "options", [{}, {"scale": 0.7}, {"scale": 1.0}, {"clip": 0.1}, {"scale": 0.5, "clip": 0.2}]
)
def test_logits_are_those_of_their_softmax(shape, options):
    logits = torch.randn(shape, dtype=torch.float64).mul(4)
    p = logits.softmax(0 if len(shape) == 3 else 1)
    expected = fastseg.unary_from_softmax(p, **{"clip": None, **options})
    torch.testing.assert_close(fastseg.unary_from_logits(logits, **options), expected)


@pytest.mark.parametrize("zero_unsure", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (2, 3, 5, 6)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_labels_are_pydensecrfs(shape, dtype, zero_unsure):
    n = 1 if dtype == torch.bool and zero_unsure else 4
    labels = torch.randint(0, n + zero_unsure, shape).to(dtype)
    actual = fastseg.unary_from_labels(labels, n, 0.7, zero_unsure)
    images = [labels] if labels.dim() == 2 else list(labels)
    energies = [actual] if labels.dim() == 2 else list(actual)
    for mine, image in zip(energies, images, strict=True):
        assert mine.shape == (n, *image.shape)
        theirs = utils.unary_from_labels(image.numpy(), n, 0.7, zero_unsure)
        torch.testing.assert_close(mine.flatten(1), torch.from_numpy(theirs))


def test_logits_have_a_gradient_where_the_softmax_underflows():
    logits = torch.tensor([[[0.0]], [[200.0]]], requires_grad=True)
    for function, alive in ((fastseg.unary_from_logits, True), (of_softmax, False)):
        (grad,) = torch.autograd.grad(function(logits)[0].sum(), logits)
        assert (grad[0].item() != 0) == alive
    scaled = fastseg.unary_from_logits(logits, scale=0.9)
    assert scaled[0].item() == pytest.approx(-math.log(0.05), rel=1e-6)


def of_softmax(logits):
    return fastseg.unary_from_softmax(logits.softmax(0))


def test_gradcheck():
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    for function in (
        fastseg.unary_from_logits,
        lambda t: fastseg.unary_from_logits(t, scale=0.6),
        lambda t: fastseg.unary_from_softmax(t.softmax(1), scale=0.6, clip=None),
    ):
        assert torch.autograd.gradcheck(function, logits)


def test_they_are_compiled():
    def chain(logits, labels):
        of_labels = fastseg.unary_from_labels(labels, 3, 0.6)
        p = logits.softmax(1)
        return fastseg.unary_from_logits(logits) + fastseg.unary_from_softmax(p, 0.8) + of_labels

    arguments = torch.randn(2, 3, 4, 5), torch.randint(0, 4, (2, 4, 5))
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*arguments), chain(*arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "options", [{}, {"clip": 1e-9}, {"scale": 1 - 1e-6, "clip": None}], ids=str
)
def test_sixteen_bits_are_rounded_once(options, dtype):
    """A clip that is 0 in float16, too, leaves no energy infinite."""
    p = torch.tensor([[0.0, 0.25], [1.0, 0.75]], dtype=dtype)[..., None]
    expected = fastseg.unary_from_softmax(p.double(), **options).to(dtype)
    assert expected.isfinite().all()
    torch.testing.assert_close(fastseg.unary_from_softmax(p, **options), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes_are_kept(dtype):
    logits = torch.randn(3, 4, 5).to(dtype)
    assert fastseg.unary_from_logits(logits, 0.5, 1e-3).dtype == dtype
    assert fastseg.unary_from_softmax(logits.softmax(0), 0.5).dtype == dtype


LOGITS, LABELS = torch.zeros(3, 4, 5), torch.ones(4, 5, dtype=torch.long)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fastseg.unary_from_logits(None), TypeError, "logits must be a tensor, got NoneT"),
        (lambda: fastseg.unary_from_logits(LOGITS[0]), ValueError, r"logits must be \(L, H, W\), "),
        (lambda: fastseg.unary_from_logits(LOGITS.int()), ValueError, "logits must be float32, fl"),
        (lambda: fastseg.unary_from_logits(LOGITS[:0]), ValueError, "logits must have a label"),
        (lambda: fastseg.unary_from_logits(LOGITS, 0), ValueError, r"scale must be in \(0, 1\] or"),
        (
            lambda: fastseg.unary_from_logits(LOGITS, 1, 2.0),
            ValueError,
            r"clip must be in .* got 2",
        ),
        (
            lambda: fastseg.unary_from_softmax(LOGITS.numpy()),
            TypeError,
            "probabilities must be a t",
        ),
        (
            lambda: fastseg.unary_from_softmax(LOGITS, "1"),
            ValueError,
            "scale must be in .* got '1'",
        ),
        (lambda: fastseg.unary_from_softmax(LOGITS, clip=-1), ValueError, "clip must be in"),
        (
            lambda: fastseg.unary_from_labels([1], 2, 0.5),
            TypeError,
            "labels must be a tensor, got l",
        ),
        (lambda: fastseg.unary_from_labels(LOGITS, 2, 0.5), TypeError, "labels must hold integers"),
        (
            lambda: fastseg.unary_from_labels(LABELS[0], 2, 0.5),
            ValueError,
            r"labels must be \(H, W",
        ),
        (
            lambda: fastseg.unary_from_labels(LABELS, 0, 0.5),
            ValueError,
            "n_labels must be at least",
        ),
        (lambda: fastseg.unary_from_labels(LABELS, 2.0, 0.5), TypeError, "n_labels must be an int"),
        (lambda: fastseg.unary_from_labels(LABELS, 2, 1), ValueError, r"gt_prob must be in \(0, 1"),
        (
            lambda: fastseg.unary_from_labels(LABELS * 3, 2, 0.5),
            ValueError,
            "labels must be 0 to 2 ",
        ),
        (
            lambda: fastseg.unary_from_labels(LABELS * 2, 2, 0.5, False),
            ValueError,
            "labels must be 0 to 1 with n_labels=2 and zero_unsure=False, got 2 to 2",
        ),
        (lambda: fastseg.unary_from_labels(-LABELS, 2, 0.5), ValueError, "got -1 to -1"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=f"unary_from_(logits|softmax|labels): .*{message}"):
        call()
