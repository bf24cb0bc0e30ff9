"""fastseg.load_backbone: ImageNet's weights into the backbones of segmentation networks."""

from __future__ import annotations

import pytest
import torch

import fastseg
from fastseg.models import build_model, vgg16_as_convolutions
from fastseg.zoo.checkpoint import CheckpointError
from tests.models.small_models import build
from tests.zoo import other_models as zoo


def classifier_of(model, tmp_path, **others):
    """A file with the backbone's weights and a classification end."""
    torch.manual_seed(1)
    state = {
        key.removeprefix("backbone."): torch.randn(t.shape) if t.is_floating_point() else t + 1
        for key, t in model.state_dict().items()
        if key.startswith("backbone.")
    }
    path = tmp_path / "imagenet.pth"
    torch.save({**state, **others}, path)
    return path, state


def fully_connected(channels, hidden):
    return {
        "classifier.0.weight": torch.randn(hidden, channels * 49),
        "classifier.0.bias": torch.randn(hidden),
        "classifier.3.weight": torch.randn(hidden, hidden),
        "classifier.3.bias": torch.randn(hidden),
        "classifier.6.weight": torch.randn(10, hidden),
        "classifier.6.bias": torch.randn(10),
    }


def assert_backbone(model, state):
    own = model.backbone.state_dict()
    assert set(own) <= set(state)
    for key, tensor in own.items():
        assert torch.equal(tensor, state[key]), key


def test_resnet(tmp_path):
    model = build("deeplabv3plus")
    path, state = classifier_of(model, tmp_path, **{"fc.weight": torch.zeros(10, 4)})
    head = model.classifier.score.weight.clone()
    report = fastseg.load_backbone(model, path)
    assert_backbone(model, state)
    assert report.ignored == ("fc.weight",)
    assert not report.missing
    assert all(key.startswith("backbone.") for key in report.loaded)
    assert torch.equal(model.classifier.score.weight, head)


@pytest.mark.parametrize("channels", [1, 2, 5, 6])
def test_other_channels_than_three(channels, tmp_path):
    """A grey picture in all channels gives what it gives in three."""
    path, state = classifier_of(build("deeplabv3plus"), tmp_path)
    model = build("deeplabv3plus", in_channels=channels)
    fastseg.load_backbone(model, path)
    (key,) = (key for key, t in state.items() if t.ndim == 4 and t.shape[1] == 3)
    weight = model.backbone.state_dict()[key]
    assert weight.shape[1] == channels
    if channels > 2:
        torch.testing.assert_close(weight[:, 3], state[key][:, 0] * 3 / channels)
    if channels % 3 == 0 or channels == 1:
        grey = torch.randn(1, 1, 9, 9)
        conv = torch.nn.functional.conv2d
        expected = conv(grey.expand(-1, 3, -1, -1), state[key])
        found = conv(grey.expand(-1, channels, -1, -1), weight)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("last_conv", [True, False])
def test_mobilenet(last_conv, tmp_path):
    options = {"width_mult": 0.25, "last_conv": True}
    whole = build("deeplabv3 mobile", backbone_options=options)
    others = {"classifier.1.weight": torch.zeros(10, 4)}
    path, state = classifier_of(whole, tmp_path, **others)
    model = build("deeplabv3 mobile", backbone_options={**options, "last_conv": last_conv})
    report = fastseg.load_backbone(model, path)
    assert_backbone(model, state)
    assert any(key.startswith("features.18.") for key in report.ignored) != last_conv
    assert "classifier.1.weight" in report.ignored


@pytest.mark.parametrize(
    "name", ["fcn8s", "deeplabv1", "deeplabv1 4x4", "deeplabv2 vgg16", "vgg without fc"]
)
def test_vgg_becomes_convolutions(name, tmp_path):
    model = build("fcn8s" if name == "vgg without fc" else name)
    if name == "vgg without fc":
        model.fc = torch.nn.Identity()
    channels = model.backbone.channels["out"]
    linear = fully_connected(channels, 16)
    path, state = classifier_of(model, tmp_path, **linear)
    report = fastseg.load_backbone(model, path)
    assert_backbone(model, state)
    found = [
        (name.removesuffix(".fc6"), m) for name, m in model.named_modules() if name.endswith("fc6")
    ]
    assert len(found) == {"deeplabv2 vgg16": 4, "vgg without fc": 0}.get(name, 1)
    for prefix, fc6 in found:
        expected = vgg16_as_convolutions(linear, kernel_size=fc6.kernel_size[0], channels=8)
        own = model.get_submodule(prefix).state_dict()
        assert all(torch.equal(own[key], expected[key]) for key in own)
    ignored = set(linear) if not found else {"classifier.6.weight", "classifier.6.bias"}
    assert set(report.ignored) == ignored


def test_what_does_not_fit_changes_nothing(tmp_path):
    model = build("fcn8s")
    linear = fully_connected(16, 16)
    path, _ = classifier_of(model, tmp_path, **linear)
    state = torch.load(path, weights_only=True)
    del state["features.0.bias"]
    state["features.2.weight"] = torch.zeros(3)
    state["avgpool.weight"] = torch.zeros(3)
    torch.save(state, path)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        fastseg.load_backbone(model, path)
    message = str(error.value)
    assert "1 missing: backbone.features.0.bias" in message
    assert "1 unexpected: avgpool.weight" in message
    assert "backbone.features.2.weight (3,) instead of (2, 2, 3, 3)" in message
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_vgg_without_its_fully_connected_layers(tmp_path):
    model = build("fcn8s")
    path, state = classifier_of(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"lacks VGG16's .*: classifier\.0\.weight, "):
        fastseg.load_backbone(model, path)
    torch.save({**state, **fully_connected(16, 4)}, path)
    with pytest.raises(CheckpointError, match=r"must be \(8, 784\).* got \(4, 784\)"):
        fastseg.load_backbone(model, path)


@pytest.mark.parametrize("name", ["unet", "deeplabv3plus xception65"])
def test_models_without_such_a_backbone(name, tmp_path):
    with pytest.raises(TypeError, match="backbone of ResNet, MobileNetV2, VGG16, got a"):
        fastseg.load_backbone(build(name), tmp_path / "imagenet.pth")


@pytest.mark.parametrize(
    ("name", "model", "options"),
    [
        ("resnet50", "deeplabv3", {}),
        ("mobilenet_v2", "deeplabv3plus", {"backbone": "mobilenet_v2"}),
        ("vgg16", "fcn8s", {}),
    ],
)
def test_torchvisions_own_classifiers(name, model, options, tmp_path):
    theirs = getattr(zoo.import_or_skip("torchvision").models, name)(weights=None)
    path = tmp_path / "imagenet.pth"
    torch.save(theirs.state_dict(), path)
    ours = build_model(model, 5, **options)
    fastseg.load_backbone(ours, path)
    assert_backbone(ours, theirs.state_dict())


def test_mobilenet_of_imagenet(shared_data):
    path = shared_data("weights", "mobilenet_v2_imagenet_dequant_tvkeys.pth")
    model = build_model("deeplabv3", 5, backbone="mobilenet_v2", output_stride=16)
    fastseg.load_backbone(model, path)
    assert_backbone(model, torch.load(path, weights_only=True))
