"""optimize_ on other people's networks in a wrapper that ends in a class map or in a loss."""

import copy

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.test_optimize_heads import called, entries
from tests.zoo.other_models import build, import_or_skip

ARGMAX, LOSS = "fastseg.upsample_argmax", "fastseg.upsample_cross_entropy"


class Wrapped(nn.Module):
    """A network of torchvision, and what a user does with what it returns."""

    def __init__(self, network):
        super().__init__()
        self.network, self.criterion = network, nn.CrossEntropyLoss(ignore_index=255)

    def forward(self, x, target=None):
        scores = self.network(x)
        if target is None:
            return scores["out"].argmax(1)
        loss = self.criterion(scores["out"], target)
        return loss + 0.5 * self.criterion(scores["aux"], target)


class WithoutAux(nn.Module):
    """The same, which asks for its mode."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, target=None):
        scores = self.network(x)["out"]
        if self.training:
            return nn.functional.cross_entropy(scores, target, ignore_index=255)
        return scores.max(1).indices


def classes_agree(actual, expected):
    """Almost all classes are equal, as fused convolutions round otherwise."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert (actual != expected).double().mean() < 1e-3


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize(
    ("name", "wrapper"),
    [("deeplabv3_mobilenet_v3_large", Wrapped), ("lraspp_mobilenet_v3_large", WithoutAux)],
)
def test_torchvision(name, wrapper, mode):
    model, x = wrapper(build(name)).eval(), torch.randn(2, 3, 65, 97)
    target = torch.randint(0, 21, (2, 65, 97))
    target[:, :9] = 255
    ours = copy.deepcopy(model)
    report = fastseg.optimize_(ours, mode=mode)
    losses = 2 if wrapper is Wrapped else 1
    assert sorted(entries(report)) == [ARGMAX, *[LOSS] * losses]
    with torch.no_grad():
        classes, names = called(ours, x)
        classes_agree(classes, model(x))
    assert "upsample_argmax" in names
    if mode == "infer":
        return
    gradients = []
    for m in (model, ours):
        m.train()
        torch.manual_seed(0)  # of the dropouts
        loss, names = called(m, x, target)
        loss.backward()
        gradients.append([loss.detach(), *(p.grad for p in m.parameters() if p.grad is not None)])
    assert names.count("upsample_cross_entropy") == losses
    for actual, expected in zip(*gradients, strict=True):
        scale = expected.abs().max()
        assert (actual - expected).abs().max() <= 2e-3 * scale + 1e-6


def test_networks_that_cannot_be_followed_say_why():
    import_or_skip("torchvision")
    smp = import_or_skip("segmentation_models_pytorch")

    class Classes(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = smp.FPN("resnet18", encoder_weights=None, classes=5)

        def forward(self, x):
            return self.network(x).argmax(1)

    report = fastseg.optimize_(Classes().eval(), dry_run=True)
    assert entries(report, "left") == ["in FPN: its forward catches exceptions"]


def test_a_network_of_transformers_says_why():
    import_or_skip("torchvision")
    transformers = import_or_skip("transformers")
    config = transformers.SegformerConfig(
        num_labels=5, hidden_sizes=[8, 8, 8, 8], depths=[1] * 4, num_attention_heads=[1] * 4
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    x, y = torch.randn(1, 3, 64, 64), torch.randint(0, 5, (1, 64, 64))
    expected = model(x, labels=y).loss
    report = fastseg.optimize_(model)
    (entry,) = [e for e in report.left if e.module == "CrossEntropyLoss"]
    assert entry.name == ""
    assert entry.detail.startswith("its forward ")
    torch.testing.assert_close(model(x, labels=y).loss, expected)
