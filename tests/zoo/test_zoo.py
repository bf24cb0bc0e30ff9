"""Checkpoints of other projects: the keys fit, and the outputs are the originals'."""

from __future__ import annotations

import copy

import pytest
import torch

import fastseg
from fastseg.zoo import SOURCES, recognise
from fastseg.zoo.checkpoint import CheckpointError
from tests.zoo import other_models as zoo
from tests.zoo import zoo_definitions as definitions

BLOCKS = (1, 1, 2, 1)
MOBILE = {"backbone_options": {"width_mult": 0.25}}

# By name: the source and the builder that are to be recognised, the original, options that no key
# tells.
ORIGINALS = {
    "milesial": ("milesial", "unet", lambda: definitions.Milesial(3, 5, 4, False), {}),
    "milesial bilinear": ("milesial", "unet", lambda: definitions.Milesial(3, 5, 4, True), {}),
    "milesial grey": ("milesial", "unet", lambda: definitions.Milesial(1, 5, 4, True), {}),
    "wkentaro 8": ("wkentaro", "fcn8s", lambda: definitions.Wkentaro(5, 8, 2, 6), {}),
    "wkentaro 16": ("wkentaro", "fcn16s", lambda: definitions.Wkentaro(5, 16, 2, 6), {}),
    "wkentaro 32": ("wkentaro", "fcn32s", lambda: definitions.Wkentaro(5, 32, 2, 6), {}),
    "kazuto": ("kazuto", "deeplabv2", lambda: definitions.Kazuto(5, 4, BLOCKS), {}),
    "kazuto scales": (
        "kazuto",
        "deeplabv2",
        lambda: definitions.KazutoScales(definitions.Kazuto(5, 4, BLOCKS)),
        {},
    ),
    "mmseg": ("mmseg", "deeplabv3", lambda: definitions.MMSeg(5, 4, BLOCKS, 8, False), {}),
    "mmseg plus": ("mmseg", "deeplabv3plus", lambda: definitions.MMSeg(5, 4, BLOCKS, 8, True), {}),
    "vainf 16": (
        "vainf",
        "deeplabv3plus",
        lambda: definitions.VainF(5, 0.25, 16, 8, separable=False),
        MOBILE,
    ),
    "vainf 8 separable": (
        "vainf",
        "deeplabv3plus",
        lambda: definitions.VainF(5, 0.25, 8, 8, separable=True),
        {**MOBILE, "output_stride": 8},
    ),
    "tensorflow": ("tensorflow", "deeplabv3", lambda: definitions.TensorFlow(5, 0.25, 8), MOBILE),
}


def saved(state, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    return path


def difference(got, expected):
    """Of the largest logit; "out" and "aux" each by itself."""
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        return max(difference(got[key], expected[key]) for key in expected)
    assert got.shape == expected.shape
    return ((got - expected).abs().max() / expected.abs().max()).item()


def assert_equal_outputs(ours, theirs, x):
    """The same function in float64; in float32 to 1e-5, or the original's own rounding errors."""
    with torch.inference_mode():
        got, rounded = ours(x), theirs(x)
        exact = copy.deepcopy(theirs).double()(x.double())
        assert difference(copy.deepcopy(ours).double()(x.double()), exact) < 1e-11
        assert difference(got, exact) < max(1e-5, 3 * difference(rounded, exact))


@pytest.mark.parametrize("name", ORIGINALS)
def test_outputs_are_the_originals(name, tmp_path):
    source, builder, build, options = ORIGINALS[name]
    channels = 1 if "grey" in name else 3
    theirs = definitions.settled(build(), channels, 97, 81)
    path = saved(theirs.state_dict(), tmp_path)
    ours = fastseg.from_checkpoint(path, **options)
    report = fastseg.load_checkpoint(copy.deepcopy(ours), path)
    assert (report.source, report.model) == (source, builder)
    assert recognise(path) == (source, builder)
    assert not report.missing
    assert not report.unexpected
    assert set(report.loaded) == set(ours.state_dict())
    assert not ours.training
    assert ours.num_classes == 5

    class AtInputSize(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = theirs

        def forward(self, x):
            y = self.inner(x)
            return definitions.up(y, x.shape[2:]) if source == "kazuto" else y

    for size in ((97, 81), (64, 99)):
        assert_equal_outputs(ours, AtInputSize(), torch.randn(2, channels, *size))


@pytest.mark.parametrize("name", ["mmseg plus", "kazuto"])
def test_the_options_make_the_outputs_equal_not_the_keys(name, tmp_path):
    _, _, build, _ = ORIGINALS[name]
    theirs = definitions.settled(build(), 3, 97, 81)
    path = saved(theirs.state_dict(), tmp_path)
    ours = fastseg.from_checkpoint(path)
    style = {"kazuto": "torchvision"}.get(name, "paper")
    other = fastseg.from_checkpoint(path, dilation_style=style)
    assert list(other.state_dict()) == list(ours.state_dict())
    x = torch.randn(1, 3, 97, 81)
    with torch.inference_mode():
        assert difference(other(x), ours(x)) > 0.01


def test_an_auxiliary_head_may_be_left_out(tmp_path):
    theirs = definitions.settled(ORIGINALS["mmseg"][2](), 3, 97, 81)
    path = saved(theirs.state_dict(), tmp_path)
    x = torch.randn(1, 3, 97, 81)
    with torch.inference_mode():
        out = fastseg.from_checkpoint(path, "deeplabv3", aux=False)(x)
        torch.testing.assert_close(out, theirs(x)["out"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
@pytest.mark.parametrize("aux", [True, False])
def test_torchvision(name, aux, tmp_path):
    segmentation = zoo.import_or_skip("torchvision").models.segmentation
    theirs = getattr(segmentation, name)(
        weights=None, weights_backbone=None, num_classes=7, aux_loss=aux
    )
    zoo.with_statistics(theirs)
    path = saved(theirs.state_dict(), tmp_path)
    ours = fastseg.from_checkpoint(path, name.split("_")[0])
    assert fastseg.load_checkpoint(ours, path).source == "torchvision"
    x = torch.randn(1, 3, 65, 97)
    with torch.inference_mode():
        expected = theirs(x)
        assert difference(ours(x), dict(expected) if aux else expected["out"]) < 1e-5


@pytest.mark.parametrize("encoder", ["resnet50", "mobilenet_v2"])
@pytest.mark.parametrize("name", ["DeepLabV3", "DeepLabV3Plus"])
def test_segmentation_models_pytorch(name, encoder, tmp_path):
    theirs = definitions.settled(
        zoo.build(name, encoder_name=encoder, classes=7, decoder_channels=32), 3, 64, 96
    )
    path = saved(theirs.state_dict(), tmp_path)
    ours = fastseg.from_checkpoint(path)
    assert fastseg.load_checkpoint(ours, path).source == "smp"
    assert_equal_outputs(ours, theirs, torch.randn(1, 3, 64, 96))


def test_smp_before_its_decoder_had_names(tmp_path):
    model = fastseg.models.deeplabv3(
        5, aspp_channels=8, backbone_options={"width": 4, "layers": BLOCKS}
    )
    names = {"classifier.0": "decoder.0", "classifier.1": "decoder.1", "classifier.2": "decoder.2"}
    names |= {"classifier.4": "segmentation_head.0", "backbone": "encoder"}
    state = {}
    for key, tensor in model.state_dict().items():
        ours = next(prefix for prefix in names if key.startswith(f"{prefix}."))
        state[names[ours] + key.removeprefix(ours)] = tensor
    loaded = fastseg.from_checkpoint(saved(state, tmp_path), source="smp")
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("backbone.0.0.weight", "no MobileNetV3"),
        ("decoder.blocks.0.conv1.0.weight", "DeepLabV3 and DeepLabV3Plus alone"),
        ("backbone.block1.rep.0.conv1.weight", "its Xception strides"),
        ("backbone.stage4.0.branches.0.0.conv1.weight", "no HRNet"),
        ("inc.conv.conv.0.weight", "have biases"),
        ("backbone.conv1.conv.weight", "its MobileNetV2 dilates"),
        ("backbone.encoder.0.0.convs.0.conv.weight", "its U-Net upsamples"),
        ("decode_head.convs.0.conv.weight", "another head"),
        ("base.aspp.stages.c0.conv.weight", "only DeepLab v2"),
    ],
)
def test_what_would_not_be_equal_is_refused(key, why, tmp_path):
    path = saved({key: torch.zeros(1)}, tmp_path)
    with pytest.raises(CheckpointError, match=why):
        fastseg.from_checkpoint(path)


def test_preprocessing_is_that_of_the_source():
    assert SOURCES["torchvision"].preprocessing.channels == "RGB"
    caffe = SOURCES["wkentaro"].preprocessing
    assert caffe.channels == "BGR"
    # Blue in 0 to 255 less its mean.
    blue = (0.5 - caffe.mean[0]) / caffe.std[0]
    assert blue == pytest.approx(127.5 - 104.00698793)
    phones = SOURCES["tensorflow"].preprocessing
    assert [(v - phones.mean[0]) / phones.std[0] for v in (0, 1)] == [-1, 1]


def test_marks_tell_sources_apart():
    """The network of each original is no other source's."""
    for source, builder, build, _ in ORIGINALS.values():
        with torch.device("meta"):
            keys = build().state_dict()
        found = [(s.name, s.layout_of(keys).model) for s in SOURCES.values() if s.layout_of(keys)]
        assert found == [(source, builder)]
        assert not any(s.refusal_of(keys) for s in SOURCES.values())
