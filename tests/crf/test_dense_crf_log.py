"""The logarithm of Q, which losses take: fastseg.dense_crf(..., log=True) and its modules."""

from __future__ import annotations

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import export

import fastseg
from fastseg import MeanField, PairwiseBilateral, PairwiseGaussian, dense_crf

each_quality = pytest.mark.parametrize("quality", ["compat", "high", "exact"])
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
TERMS = [PairwiseGaussian(2, 1), PairwiseBilateral(8, 20, 2)]


def random(*shape, seed=0, scale=1.0, dtype=torch.float32):
    return scale * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(batch=2, labels=4, spatial=(9, 12), scale=400.0, dtype=torch.float32):
    """Energies at which most of Q underflows in float32, and images."""
    unary = random(batch, labels, *spatial, scale=scale, dtype=torch.float64).to(dtype)
    return unary, random(batch, 3, *spatial, seed=1, scale=255)


@each_quality
@pytest.mark.parametrize("spatial", [(9, 12), (1, 1), (4, 5, 6)])
@pytest.mark.parametrize("labels", [1, 4, 300])
def test_log_q_is_exact(quality, spatial, labels):
    """Each step by the composition in float64 is a softmax of logits that autograd can see."""
    unary, image = problem(labels=labels, spatial=spatial)
    out = dense_crf(unary, image, TERMS, iterations=3, quality=quality, log=True)
    field = MeanField(unary.double(), image, TERMS, quality=quality)
    field.step(3)
    assert out.shape == unary.shape
    assert out.is_contiguous()
    assert labels == 1 or out.min() < -150
    torch.testing.assert_close(out.double(), field.log_q, rtol=2e-4, atol=2e-2)
    exact = dense_crf(unary.double(), image, TERMS, iterations=3, quality=quality, log=True)
    torch.testing.assert_close(exact, field.log_q, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(exact.exp(), field.q, rtol=1e-9, atol=1e-12)


@each_quality
def test_every_way_to_log_q(quality):
    unary, image = problem(scale=4, dtype=torch.float64)
    expected = dense_crf(unary, image, TERMS, iterations=3, quality=quality).log()
    field = MeanField(unary, image, TERMS, quality=quality, log=True)
    for log_q in (
        dense_crf(unary, image, TERMS, iterations=3, quality=quality, log=True),
        field.step(3),
        field.log_q,
        field.q.log(),
        torch.stack(
            [
                dense_crf(u, i, TERMS, iterations=3, quality=quality, log=True)
                for u, i in zip(unary, image, strict=True)
            ]
        ),
    ):
        torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-6)


@each_quality
def test_the_layer(quality):
    unary, image = problem(scale=4, dtype=torch.float64)
    layer = fastseg.nn.DenseCRF(4, TERMS, 3, quality, log=True).double()
    plain = fastseg.nn.DenseCRF(4, TERMS, 3, quality).double()
    expected = dense_crf(unary, image, plain.pairwise(), iterations=3, quality=quality).log()
    for log_q in (
        layer(unary, image),
        layer(unary, image, log=False).log(),
        plain(unary, image).log(),
        plain(unary, image, log=True),
    ):
        torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-9)
    assert "log=True" in repr(layer)
    assert "log=False" in repr(plain)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    unary, image = problem(dtype=dtype)
    log_q = dense_crf(unary, image, TERMS, iterations=2, log=True)
    assert log_q.dtype == dtype
    expected = dense_crf(unary.float(), image, TERMS, iterations=2, log=True)
    torch.testing.assert_close(log_q.float(), expected, rtol=1e-2, atol=1e-2)


@each_quality
def test_a_label_that_is_ruled_out(quality):
    unary, image = problem(scale=4)
    unary[:, 1] = torch.inf
    unary.requires_grad_()
    log_q = dense_crf(unary, image, TERMS, iterations=2, quality=quality, log=True)
    assert (log_q[:, 1] == -torch.inf).all()
    assert log_q[:, [0, 2, 3]].isfinite().all()
    target = torch.full((2, 9, 12), 2)
    (grad,) = torch.autograd.grad(F.nll_loss(log_q, target), unary)
    assert grad.isfinite().all()
    assert (grad[:, 1] == 0).all()
    assert (grad[:, 2] > 0).all()


@each_layout
@each_quality
def test_gradients_of_the_loss(quality, layout):
    """At pixels that are wrong with confidence too, where q.clamp(min=1e-8).log() has none."""
    logits, image = problem(dtype=torch.float64)
    logits = logits.contiguous(memory_format=LAYOUTS[layout]).requires_grad_()
    target = logits.detach().argmin(1)  # wrong everywhere
    target[:, :2] = 255

    def loss(logits):
        log_q = dense_crf(-logits, image, TERMS, iterations=2, quality=quality, log=True)
        return F.nll_loss(log_q, target, ignore_index=255)

    (grad,) = torch.autograd.grad(loss(logits), logits)
    of_target = grad.gather(1, target.where(target < 4, 0)[:, None])[:, 0]
    counted = target != 255
    assert (of_target[counted] < -0.9 / counted.sum()).all()
    single = logits.detach().float().requires_grad_()
    (of_single,) = torch.autograd.grad(loss(single), single)
    torch.testing.assert_close(of_single.double(), grad, rtol=1e-3, atol=1e-5)

    clamped = dense_crf(-single, image, TERMS, iterations=2, quality=quality).clamp(min=1e-8).log()
    wrong = F.nll_loss(clamped.contiguous(), target, ignore_index=255)
    (none,) = torch.autograd.grad(wrong, single)
    assert (none.gather(1, target.where(target < 4, 0)[:, None])[:, 0] == 0).float().mean() > 0.5


class Network(nn.Module):
    """One convolution and the layer, as the documentation has them."""

    def __init__(self, quality, layout):
        super().__init__()
        self.conv, self.layout = nn.Conv2d(3, 4, 1), layout
        self.crf = fastseg.nn.DenseCRF(4, TERMS, 2, quality, log=True)

    def forward(self, image):
        logits = self.conv(image / 255)
        return self.crf(-logits.contiguous(memory_format=self.layout), image)


def trained(network, steps=30):
    """The losses of a training that begins confidently wrong."""
    target = torch.arange(12).div(4, rounding_mode="floor").repeat(2, 9, 1)
    image = 200 * F.one_hot(target, 3).permute(0, 3, 1, 2) + random(2, 3, 9, 12, scale=20)
    target[:, -1] = 255
    with torch.no_grad():
        network.conv.weight.copy_(-60 * torch.eye(4, 3)[:, :, None, None])
        network.conv.bias.zero_()
    groups = [
        {"params": network.conv.parameters(), "lr": 5},
        {"params": network.crf.parameters(), "lr": 0.05},
    ]
    optimizer = torch.optim.Adam(groups)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.nll_loss(network(image), target, ignore_index=255)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@each_layout
@each_quality
def test_a_network_learns_from_confident_mistakes(quality, layout):
    torch.manual_seed(0)
    losses = trained(Network(quality, LAYOUTS[layout]))
    assert losses[0] > 10
    assert losses[-1] < 0.1 * losses[0]


@each_layout
def test_compiled_and_exported(layout):
    torch.manual_seed(0)
    network = Network("high", LAYOUTS[layout])
    image = random(2, 3, 9, 12, scale=255)
    expected = network(image)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(image), expected)
    torch.testing.assert_close(trained(compiled, 3), trained(copy.deepcopy(network), 3))
    saved = io.BytesIO()
    torch.export.save(export(network, (image,)), saved)
    saved.seek(0)
    out = torch.export.load(saved).module()(image)
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected)


@each_layout
def test_the_loss_under_autocast(layout):
    torch.manual_seed(0)
    network = Network("high", LAYOUTS[layout])
    image = random(2, 3, 9, 12, scale=255)
    with torch.autocast("cpu", torch.bfloat16):
        loss = F.nll_loss(network(image), image.argmax(1))
    loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_a_model_with_the_layer_has_logits_that_lose_nothing():
    """Its output is log Q: a clamp would end the gradient where the network is wrong."""
    torch.manual_seed(0)
    model = fastseg.models.fcn8s(4, width=4, fc_channels=8, crf="layer").eval()
    model.scores = lambda x: {
        "out": 300 * x[:, :1] * torch.tensor([1.0, -1, 0, 0.5])[:, None, None]
    }
    x = random(1, 3, 16, 16).requires_grad_()
    logits = model(x)
    assert logits.min() < -50
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, logits.detach().argmin(1)), x)
    assert (grad[:, 0] != 0).all()
