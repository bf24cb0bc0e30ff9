"""The loss of weakly supervised segmentation beside the published one and all pairs of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function

import fastseg
from fastseg import reference
from fastseg.compat.bilateralfilter import bilateralfilter_batch
from fastseg.nn import DenseEnergyLoss
from fastseg.ops.crf.dense_energy import dense_energy
from fastseg.reference.crf.mean_field import gaussian_sums
from tests.crf.test_bilateral_filter import photo

op = torch.ops.fastseg.dense_energy.default
PUBLISHED = {"weight": 1e-7, "sigma_rgb": 15, "sigma_xy": 100, "scale_factor": 0.5}


class PublishedFunction(Function):
    """What rloss, AFA, ToCo and SeCo do with the module bilateralfilter, on numpy arrays."""

    @staticmethod
    def forward(ctx, images, segmentations, sigma_rgb, sigma_xy, rois, unlabeled):
        n, k, h, w = segmentations.shape
        ctx.rois = rois[:, None]
        gate = torch.ones_like(rois)
        if unlabeled is not None:
            gate = rois - segmentations.max(1)[0]
            gate[unlabeled] = 1
            gate[gate < 0] = 0
        s = (segmentations * ctx.rois).numpy().flatten()
        out = np.zeros(s.shape, np.float32)
        bilateralfilter_batch(images.numpy().flatten(), s, out, n, k, h, w, sigma_rgb, sigma_xy)
        ctx.gated = torch.from_numpy(out.reshape(n, k, h, w)) * gate[:, None]
        return torch.tensor([-np.dot(s, ctx.gated.numpy().flatten()) / n])

    @staticmethod
    def backward(ctx, grad):
        n = len(ctx.gated)
        return None, -2 * grad * ctx.gated / n * ctx.rois, None, None, None, None


def published(images, segmentations, rois, labels, weight, sigma_rgb, sigma_xy, scale_factor):
    """The published DenseEnergyLoss's forward; without labels DenseCRFLoss's."""
    images = F.interpolate(images, scale_factor=scale_factor)
    segmentations = F.interpolate(
        segmentations, scale_factor=scale_factor, mode="bilinear", align_corners=False
    )
    rois = F.interpolate(rois[:, None], scale_factor=scale_factor)[:, 0]
    unlabeled = None
    if labels is not None:
        labels = F.interpolate(labels, scale_factor=scale_factor, mode="nearest")
        unlabeled = (labels.long() == 255)[:, 0]
    sigma_xy *= scale_factor
    return weight * PublishedFunction.apply(
        images, segmentations, sigma_rgb, sigma_xy, rois, unlabeled
    )


def batch(n=3, k=4, h=48, w=62):
    """Images, soft segmentations with a gradient, ROIs with padding, and labels (N, 1, H, W)."""
    segmentations = torch.randn(n, k, h, w).mul(3).softmax(1).requires_grad_()
    rois = torch.zeros(n, h, w)
    rois[:, 2 : h - 5, 3 : w - 4] = 1
    labels = torch.randint(0, k + 1, (n, 1, h, w), dtype=torch.uint8)
    labels[labels == k] = 255
    return photo(n, 3, h, w), segmentations, rois, labels


@pytest.mark.parametrize("labeled", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4, 21])
@pytest.mark.parametrize("scale_factor", [0.5, 0.7, 1])
def test_value_and_gradient_are_the_published(k, scale_factor, labeled):
    images, segmentations, rois, labels = batch(k=k, h=49)
    options = {**PUBLISHED, "scale_factor": scale_factor}
    labels = labels if labeled else None
    expected = published(images, segmentations, rois, labels, **options)
    actual = DenseEnergyLoss(**options)(images, segmentations, rois, labels)
    assert actual.shape == ()
    torch.testing.assert_close(actual, expected[0], rtol=1e-5, atol=0)
    grads = [torch.autograd.grad(3 * loss, segmentations)[0] for loss in (actual, expected)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5 * grads[1].abs().max().item())


@pytest.mark.parametrize("gated", [False, True])
def test_is_the_sum_over_all_pairs(gated):
    n, h, w = 2, 12, 15
    s = torch.rand(n, 3, h, w, dtype=torch.float64, requires_grad=True)
    image, rois = photo(n, 3, h, w).double(), torch.rand(n, h, w).double()
    gates = torch.rand(n, h, w, dtype=torch.float64) if gated else None
    y, x = torch.meshgrid(torch.arange(h) / 6.0, torch.arange(w) / 6.0, indexing="ij")
    positions = torch.stack([x, y]).double().expand(n, 2, h, w)
    features = torch.cat([positions, image / 30], 1).flatten(2)
    masked = (s.detach() * rois[:, None]).flatten(2)
    sums = gaussian_sums(masked, features).view(s.shape)
    if gated:
        sums = sums * gates[:, None]
    energy = dense_energy(s, image, 6.0, 30.0, rois=rois, gates=gates, quality="exact")
    torch.testing.assert_close(energy, -(masked.view(s.shape) * sums).sum() / n)
    (grad,) = torch.autograd.grad(energy, s)
    torch.testing.assert_close(grad, -2 / n * rois[:, None] * sums)
    for quality, least, most in (("compat", 0.4, 0.6), ("high", 0.9, 1.1)):
        near = dense_energy(s, image, 6.0, 30.0, rois=rois, gates=gates, quality=quality)
        assert least < (near / energy).item() < most


@pytest.mark.parametrize("quality", ["high", "exact"])
def test_gradcheck(quality):
    torch.set_num_threads(1)
    images, _, rois, _ = batch(2, 2, 8, 10)
    loss = DenseEnergyLoss(1e-2, 40, 6, 0.5, quality=quality)
    s = torch.rand(2, 2, 8, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(images, s, rois), s)


@pytest.mark.parametrize("quality", range(3))
@pytest.mark.parametrize("optional", [False, True])
def test_is_the_reference(quality, optional):
    image, s, rois, _ = batch(2, 2, 9, 11)
    gates = torch.rand(2, 9, 11)
    arguments = s, image, rois if optional else None, gates if optional else None
    results = op(*arguments, 7.0, 20.0, quality)
    for actual, expected in zip(
        results, reference.dense_energy(*arguments, 7.0, 20.0, quality), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_ones_and_no_labels_are_the_defaults():
    images, s, _, _ = batch()
    loss = DenseEnergyLoss(**PUBLISHED)
    assert torch.equal(loss(images, s), loss(images, s, torch.ones(3, 48, 62)))
    all_unlabeled = torch.full((3, 48, 62), 255)
    assert torch.equal(loss(images, s), loss(images, s, None, all_unlabeled))


def test_labels_and_rois_of_any_dtype():
    images, s, rois, labels = batch()
    loss = DenseEnergyLoss(**PUBLISHED)
    expected = loss(images, s, rois, labels)
    for dtype in (torch.int64, torch.int32, torch.float32, torch.float64):
        assert torch.equal(loss(images, s, rois, labels[:, 0].to(dtype)), expected)
    assert torch.equal(loss(images, s, rois.bool(), labels), expected)
    pixels = images.round().clamp(0, 255)
    assert torch.equal(loss(pixels.to(torch.uint8), s), loss(pixels, s))


def test_arguments_are_left_alone():
    given = batch()
    images, s, rois, labels = (t.detach().clone() for t in given)
    DenseEnergyLoss(**PUBLISHED)(images, s.requires_grad_(), rois, labels).backward()
    for t, before in zip((images, s, rois, labels), given, strict=True):
        assert torch.equal(t, before)
    assert images.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype):
    images, s, rois, labels = batch()
    half = s.detach().to(dtype).requires_grad_()
    same = half.detach().float().requires_grad_()
    loss = DenseEnergyLoss(**{**PUBLISHED, "weight": 1e-3})
    results = [loss(images, t, rois, labels) for t in (half, same)]
    assert results[0].dtype == torch.float32
    assert torch.equal(*results)
    grads = [torch.autograd.grad(r, t)[0] for r, t in zip(results, (half, same), strict=True)]
    assert grads[0].dtype == dtype
    assert torch.equal(grads[0], grads[1].to(dtype))


def test_autocast_changes_nothing():
    images, s, rois, labels = batch()
    loss = DenseEnergyLoss(**PUBLISHED)
    expected = loss(images, s, rois, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(images, s, rois, labels), expected)


def test_an_empty_batch_costs_nothing():
    s = torch.rand(0, 2, 8, 8, requires_grad=True)
    loss = DenseEnergyLoss(**PUBLISHED)(torch.rand(0, 3, 8, 8), s)
    assert loss.item() == 0
    loss.backward()
    assert s.grad.shape == s.shape


def test_threads_change_nothing():
    images, s, rois, labels = batch(5, 3, 120, 130)
    loss, results = DenseEnergyLoss(**PUBLISHED), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        value = loss(images, s, rois, labels)
        results.append((value, *torch.autograd.grad(value, s)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("quality", range(3))
def test_the_second_derivative_is_that_of_the_gradient(quality):
    """The second output is linear in the segmentations; so is the first's gradient, which it is."""
    image, rois, gates = photo(2, 3, 5, 6).double(), torch.rand(2, 5, 6), torch.rand(2, 5, 6)
    constants = image, rois.double(), gates.double(), 4.0, 30.0, quality
    s = torch.rand(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: op(s, *constants)[1], s)
    (grad,) = torch.autograd.grad(op(s, *constants)[0], s, create_graph=True)
    direction = torch.randn_like(grad)
    (second,) = torch.autograd.grad(grad, s, direction)
    (expected,) = torch.autograd.grad(op(s, *constants)[1], s, direction)
    torch.testing.assert_close(second, expected)


def test_segmentations_alone_have_a_gradient():
    _, s, _, _ = batch(1, 2, 8, 8)
    image = torch.rand(1, 3, 8, 8, requires_grad=True)
    energy = dense_energy(s, image, 5.0, 5.0)
    with pytest.raises(NotImplementedError, match="segmentations alone have a gradient"):
        energy.backward()


def test_training_makes_neighbours_of_like_colour_agree():
    """Steps on the loss alone: a pixel of noise takes the label of its region."""
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 200
    logits = torch.where(images[:, :1] > 0, torch.tensor([[[[-2.0]], [[2.0]]]]), 0) + 0.0
    logits[:, :, :, :8] = torch.tensor([2.0, -2.0]).view(1, 2, 1, 1)
    logits[0, :, 5, 3] = torch.tensor([-0.5, 0.5])
    logits.requires_grad_()
    loss = DenseEnergyLoss(1e-2, 15, 20, 1)
    for _ in range(20):
        (grad,) = torch.autograd.grad(loss(images, logits.softmax(1)), logits)
        logits = (logits - grad).detach().requires_grad_()
    assert torch.equal(logits.argmax(1)[0], (images[0, 0] > 0).long())


class Net(nn.Module):
    """A network of one layer with the loss behind it."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 4, 1)
        self.loss = DenseEnergyLoss(**PUBLISHED)

    def forward(self, images, rois, labels):
        return self.loss(images, self.head(images / 255).softmax(1), rois, labels)


def test_compile():
    images, _, rois, labels = batch()
    net = Net()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    results = []
    for function in (net, compiled):
        value = function(images, rois, labels)
        results.append((value, *torch.autograd.grad(value, list(net.parameters()))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_export():
    images, _, rois, labels = batch()
    net = Net().eval()
    program = torch.export.export(net, (images, rois, labels))
    torch.testing.assert_close(program.module()(images, rois, labels), net(images, rois, labels))


def test_func_grad_is_autograd():
    images, s, rois, labels = batch(1, 2, 20, 22)
    loss = DenseEnergyLoss(**PUBLISHED)
    (expected,) = torch.autograd.grad(loss(images, s, rois, labels), s)
    actual = torch.func.grad(lambda s: loss(images, s, rois, labels))(s.detach())
    assert torch.equal(actual, expected)


def test_opcheck():
    image, s, rois, _ = batch(2, 2, 5, 6)
    torch.library.opcheck(op, (s, image, rois, rois, 5.0, 13.0, 1))
    torch.library.opcheck(op, (s.detach().double(), image.double(), None, None, 5.0, 13.0, 0))


def test_repr_and_namespace():
    assert fastseg.nn.DenseEnergyLoss is DenseEnergyLoss
    assert repr(DenseEnergyLoss(**PUBLISHED)) == (
        "DenseEnergyLoss(weight=1e-07, sigma_rgb=15, sigma_xy=100, scale_factor=0.5, "
        "quality='compat')"
    )


IMAGES, SEGMENTATIONS = torch.rand(2, 3, 8, 9), torch.rand(2, 4, 8, 9)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weight": "1"}, TypeError, "weight must be a number, got '1'"),
        ({"weight": float("nan")}, ValueError, "weight must be finite, got nan"),
        ({"sigma_rgb": 0}, ValueError, "sigma_rgb must be positive and finite, got 0"),
        ({"sigma_xy": float("inf")}, ValueError, "sigma_xy must be positive and finite, got inf"),
        ({"sigma_xy": True}, TypeError, "sigma_xy must be a number, got True"),
        ({"scale_factor": -0.5}, ValueError, "scale_factor must be positive and finite, got -0.5"),
        ({"quality": "best"}, ValueError, "quality must be one of compat, high, exact, got 'best'"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=f"DenseEnergyLoss: {message}"):
        DenseEnergyLoss(**{**PUBLISHED, **options})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": None}, TypeError, "images must be a tensor, got NoneType"),
        ({"images": IMAGES.numpy()}, TypeError, "images must be a tensor, got ndarray"),
        ({"ROIs": [1]}, TypeError, "ROIs must be a tensor or None, got list"),
        ({"seg_label": 255}, TypeError, "seg_label must be a tensor or None, got int"),
        ({"images": IMAGES[0]}, ValueError, r"images must be \(2, C, 8, 9\) with C from 1 to 6"),
        ({"images": IMAGES[:1]}, ValueError, r"got shape \(1, 3, 8, 9\)"),
        ({"images": IMAGES.mT}, ValueError, r"got shape \(2, 3, 9, 8\)"),
        ({"images": IMAGES.to(torch.cfloat)}, ValueError, "images must be real, got torch.complex"),
        ({"images": IMAGES / 0}, RuntimeError, "features must be finite"),
        ({"segmentations": SEGMENTATIONS.int()}, ValueError, "segmentations must be float32, fl"),
        ({"segmentations": SEGMENTATIONS[0]}, ValueError, r"segmentations must be \(N, K, H, W\)"),
        ({"segmentations": SEGMENTATIONS[:, :0]}, ValueError, "not empty but for N"),
        ({"ROIs": torch.ones(2, 1, 8, 9)}, ValueError, r"ROIs must be \(2, 8, 9\), got shape"),
        ({"seg_label": torch.ones(2, 4, 8, 9)}, ValueError, r"seg_label must be \(2, 8, 9\) or"),
    ],
)
def test_bad_input(arguments, error, message):
    given = {"images": IMAGES, "segmentations": SEGMENTATIONS, **arguments}
    with pytest.raises(error, match=message):
        DenseEnergyLoss(**PUBLISHED)(**given)


def test_nothing_is_left_after_scaling():
    loss = DenseEnergyLoss(1, 15, 100, 0.1)
    with pytest.raises(ValueError, match=r"must keep a pixel after scaling by 0.1, got shape"):
        loss(IMAGES, SEGMENTATIONS)
