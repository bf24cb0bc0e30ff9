"""The boundary and the Hausdorff loss, beside their formulas element by element, and MONAI's."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseg.nn import BoundaryLoss, HausdorffDTLoss
from tests.head.test_distance_transform import of_all_pairs

pytestmark = pytest.mark.usefixtures("one_thread")
LOSSES = (BoundaryLoss, HausdorffDTLoss)
SIZES = ((2, 3, 9, 12), (2, 4, 4, 6, 5))
each_size = pytest.mark.parametrize("size", SIZES, ids=("2-D", "3-D"))
each_loss = pytest.mark.parametrize("loss", LOSSES)


def example(size, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """Logits and labels (N, 1, ...), of which the last class is in no image, the first in all."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, generator=generator, dtype=dtype)
    labels = torch.randint(size[1] - 1, (size[0], 1, *size[2:]), generator=generator)
    return logits * 3, labels


def one_hot(labels: Tensor, classes: int) -> Tensor:
    return F.one_hot(labels[:, 0], classes).movedim(-1, 1).float()


def distances(inside: Tensor, spacing=None) -> tuple[Tensor, Tensor]:
    """From each element within to the outside, and from each one outside to the inside."""
    steps = [1.0] * inside.dim() if spacing is None else spacing
    return tuple(of_all_pairs(side, steps).sqrt() for side in (inside, ~inside))


def signed(inside: Tensor, spacing=None) -> Tensor:
    """The authors' one_hot2dist, but for the least spacing in place of 1."""
    if not inside.any() or inside.all():
        return torch.zeros(inside.shape, dtype=torch.float64)
    inner, outer = distances(inside, spacing)
    return outer * ~inside - (inner - min(spacing or [1.0])) * inside


def field(inside: Tensor, spacing=None) -> Tensor:
    """Distances on both sides; none where there is one side alone."""
    if not inside.any() or inside.all():
        return torch.zeros(inside.shape, dtype=torch.float64)
    return sum(distances(inside, spacing))


def of_images(function, maps: Tensor, spacing=None) -> Tensor:
    return torch.stack([torch.stack([function(m > 0.5, spacing) for m in n]) for n in maps])


@each_size
@pytest.mark.parametrize("spaced", [False, True])
def test_boundary_loss(size, spaced):
    spacing = [0.5, 2.0, 3.0][: len(size) - 2] if spaced else None
    logits, labels = example(size, torch.float64)
    target, probabilities = one_hot(labels, size[1]), logits.softmax(1)
    expected = probabilities * of_images(signed, target, spacing)
    for background, (reduction, reduce) in itertools.product(
        (False, True), {"mean": Tensor.mean, "sum": Tensor.sum, "none": Tensor.clone}.items()
    ):
        loss = BoundaryLoss(background, True, softmax=True, reduction=reduction, spacing=spacing)
        actual = loss(logits, labels)
        torch.testing.assert_close(
            actual, reduce(expected[:, 1 - background :]), rtol=1e-6, atol=1e-6
        )
    given = BoundaryLoss(True, spacing=spacing)(probabilities, target)
    torch.testing.assert_close(given, expected.mean(), rtol=1e-6, atol=1e-6)


def test_boundary_loss_by_hand():
    """A square of 3x3 whose outermost elements are 0, whose centre is -1; 1 beside it."""
    target = torch.zeros(1, 1, 5, 7)
    target[..., 1:4, 1:4] = 1
    phi = BoundaryLoss(True, reduction="none")(torch.ones_like(target), target)[0, 0]
    assert phi[2].tolist() == [1, 0, -1, 0, 1, 2, 3]
    torch.testing.assert_close(phi[0, 0], torch.tensor(2.0).sqrt())
    for constant in (torch.zeros_like(target), torch.ones_like(target)):
        assert BoundaryLoss(True)(torch.ones_like(target), constant) == 0


@each_size
@pytest.mark.parametrize("alpha", [2.0, 1.0, 3.5])
@pytest.mark.parametrize("batch", [False, True])
def test_hausdorff_dt_loss(size, alpha, batch):
    logits, labels = example(size, torch.float64)
    target, p = one_hot(labels, size[1]), logits.softmax(1)
    weight = of_images(field, p) ** alpha + of_images(field, target) ** alpha
    error = (p - target).square() * weight
    axes = [0] * batch + list(range(2, len(size)))
    expected = error.mean(axes, keepdim=True)
    for background, (reduction, reduce) in itertools.product(
        (False, True), {"mean": Tensor.mean, "sum": Tensor.sum, "none": Tensor.clone}.items()
    ):
        loss = HausdorffDTLoss(
            alpha, background, True, softmax=True, reduction=reduction, batch=batch
        )
        actual = loss(logits, labels)
        torch.testing.assert_close(
            actual, reduce(expected[:, 1 - background :]), rtol=1e-5, atol=1e-6
        )


def test_hausdorff_dt_loss_with_spacing():
    logits, labels = example((2, 3, 9, 12), torch.float64)
    spacing = [3.0, 0.5]
    target, p = one_hot(labels, 3), logits.sigmoid()
    weight = of_images(field, p, spacing) ** 2 + of_images(field, target, spacing) ** 2
    expected = ((p - target).square() * weight).mean()
    actual = HausdorffDTLoss(include_background=True, sigmoid=True, spacing=spacing)(logits, target)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)


@each_size
@each_loss
def test_gradients(loss, size):
    """Of the input alone, with the distances as constants."""
    logits, labels = example((1, 3, *[3] * (len(size) - 2)), torch.float64)
    module = loss(to_onehot_y=True, softmax=True, include_background=True)
    torch.autograd.gradcheck(
        lambda x: module(x, labels), logits.requires_grad_(), eps=1e-7, atol=1e-4
    )


@each_loss
def test_labels_of_no_class_are_outside_of_all(loss):
    logits, labels = example(SIZES[0])
    labels[:, :, 2:5, 3:9] = 255
    target = torch.stack([labels[:, 0] == c for c in range(3)], 1)
    arguments = {"softmax": True, "include_background": True}
    actual = loss(to_onehot_y=True, **arguments)(logits, labels)
    for same in (target, target.float(), target.long()):
        assert loss(**arguments)(logits, same) == actual


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bits_and_autocast(loss, dtype):
    logits, labels = example(SIZES[0])
    module = loss(to_onehot_y=True, softmax=True)
    expected = module(logits, labels)
    actual = module(logits.to(dtype), labels)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0.1, atol=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(logits, labels), expected)


@each_loss
def test_one_channel(loss):
    logits = torch.randn(2, 1, 6, 7)
    target = (torch.randn(2, 1, 6, 7) > 0).float()
    for option in ("to_onehot_y", "softmax"):
        with pytest.warns(UserWarning, match=f"{loss.__name__}: {option}=True is ignored"):
            loss(include_background=True, **{option: True})(logits, target)
    with pytest.warns(UserWarning, match="include_background=False is ignored"):
        actual = loss(sigmoid=True)(logits, target)
    assert actual == loss(other_act=torch.sigmoid, include_background=True)(logits, target)


@each_loss
def test_compile(loss):
    logits, labels = example(SIZES[0])
    module = loss(to_onehot_y=True, softmax=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, labels), module(logits, labels))


@each_loss
def test_bad_input(loss):
    name = f"fastseg.nn.{loss.__name__}"
    x, y = torch.rand(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    for arguments, error, words in (
        ({"other_act": 3}, TypeError, "other_act must be callable or None, got int"),
        ({"sigmoid": True, "softmax": True}, ValueError, "only one of sigmoid, softmax"),
        ({"reduction": "median"}, ValueError, "reduction must be one of .*, got 'median'"),
    ):
        with pytest.raises(error, match=f"{name}: {words}"):
            loss(**arguments)
    for arguments, tensors, error, words in (
        ({}, (x[0], y), ValueError, r"input must be .* got shape \(3, 4, 5\)"),
        ({}, (x.int(), y), ValueError, "input must be float32.* got torch.int32"),
        ({}, (x, y[:, :2]), ValueError, r"target must have input's shape .* got \(2, 2, 4, 5\)"),
        ({}, (x, y.to(torch.complex64)), ValueError, "target must be bool.* got torch.complex64"),
        ({"to_onehot_y": True}, (x, y), ValueError, r"target must hold labels of shape \(2, 1, 4"),
        ({}, (x, None), TypeError, "target must be a tensor, got NoneType"),
        (
            {},
            (x, y.to("meta")),
            ValueError,
            "input and target must be on one device, got cpu and meta",
        ),
    ):
        with pytest.raises(error, match=f"{name}: {words}"):
            loss(**arguments)(*tensors)
    with pytest.raises(RuntimeError, match="spacing must be a number or one for each of 2 axes"):
        loss(spacing=(1, 2, 3))(x, y)


@each_size
@pytest.mark.parametrize("batch", [False, True])
def test_monai(size, batch):
    losses = pytest.importorskip("monai.losses")
    logits, labels = example(size)
    for alpha, background, reduction in itertools.product((2.0, 1.5), (0, 1), ("mean", "none")):
        arguments = {
            "alpha": alpha,
            "include_background": bool(background),
            "to_onehot_y": True,
            "softmax": True,
            "reduction": reduction,
            "batch": batch,
        }
        theirs, ours = losses.HausdorffDTLoss(**arguments), HausdorffDTLoss(**arguments)
        inputs = [logits.clone().requires_grad_() for _ in range(2)]
        results = [loss(x, labels) for loss, x in zip((ours, theirs), inputs, strict=True)]
        torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)
        for result in results:
            result.sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-6)


def test_a_network_learns_the_shape_that_the_losses_want():
    """Steps along the gradient lower the loss, and the shape comes closer to the target."""
    target = torch.zeros(1, 1, 20, 20)
    target[..., 5:14, 6:15] = 1
    for loss in (BoundaryLoss(True, sigmoid=True), HausdorffDTLoss(2, True, sigmoid=True)):
        logits = torch.randn(1, 1, 20, 20, generator=torch.Generator().manual_seed(0))
        logits.requires_grad_()
        optimizer = torch.optim.SGD([logits], 1.0)
        wrong = []
        for _ in range(30):
            wrong.append(((logits > 0) != (target > 0)).sum().item())
            optimizer.zero_grad()
            (100 * loss(logits, target)).backward()
            optimizer.step()
        assert wrong[-1] < 0.5 * wrong[0]
