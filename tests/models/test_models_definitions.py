"""The models against their papers and original definitions: sizes, costs, names, geometry."""

from __future__ import annotations

import importlib
import importlib.util

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastseg.models import (
    deeplabv1,
    deeplabv2,
    deeplabv3,
    deeplabv3plus,
    fcn,
    fcn8s,
    fcn16s,
    fcn32s,
    unet,
    vgg16_as_convolutions,
)
from fastseg.models._layers import resize, use_backend
from fastseg.models.backbones import (
    VGG16,
    MobileNetV2,
    build_backbone,
    resnet50,
    resnet101,
    xception65,
)
from fastseg.models.backbones.dilation import dilated_stages
from fastseg.models.backbones.vgg import FullyConvolutional
from fastseg.models.fcn import bilinear_kernel
from tests.models.small_models import build

CLASSIFIER = 2048 * 1000 + 1000  # of ImageNet's classes, which the backbones have not
MOBILE = {"backbone": "mobilenet_v2", "output_stride": 16}


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def multiply_adds(model, size, in_channels=3):
    """Of one square image."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, in_channels, size, size, device="meta"))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # torchvision's, with and without auxiliary head.
        (lambda: deeplabv3(aux=True), 42_004_074),
        (lambda: deeplabv3(), 39_638_869),
        (lambda: deeplabv3(backbone="resnet101", aux=True), 60_996_202),
        (lambda: fcn(aux=True), 35_322_218),
        (lambda: fcn(backbone="resnet101", aux=True), 54_314_346),
        # The paper's network, and milesial's.
        (lambda: unet(2, padding="valid", batch_norm=False, in_channels=1), 31_030_658),
        (lambda: unet(2), 31_037_698),
        (lambda: unet(2, upsampling="bilinear"), 17_262_977 + 65),
        # VGG16 with 21 classes instead of 1000 (138,357,544 - 979 x 4097), and deconvolutions.
        (lambda: fcn32s(), 134_346_581 + (21 * 64) ** 2),
        (lambda: fcn16s(), 134_346_581 + 21 * 513 + (21 * 32) ** 2 + (21 * 4) ** 2),
        (
            lambda: fcn8s(),
            134_346_581 + 21 * (513 + 257) + (21 * 16) ** 2 + 2 * (21 * 4) ** 2,
        ),
        (lambda: deeplabv1(variant="7x7"), 134_346_581),
    ],
)
def test_parameter_counts_are_those_of_the_originals(build, expected):
    with torch.device("meta"):
        assert parameters(build()) == expected


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        # Chen et al. 2015, Table 2.
        (lambda: deeplabv1(variant="7x7"), 134.3),
        (lambda: deeplabv1(variant="4x4"), 65.1),
        (lambda: deeplabv1(variant="4x4_small"), 65.1),
        (lambda: deeplabv1(variant="largefov"), 20.5),
        # Sandler et al. 2018, Table 7: without and with ASPP.
        (lambda: deeplabv3(atrous_rates=(), **MOBILE), 2.11),
        (lambda: deeplabv3(head_conv=False, **MOBILE), 4.52),
    ],
)
def test_parameter_counts_are_the_papers(build, expected):
    digits = len(str(expected).split(".")[1])
    with torch.device("meta"):
        assert round(parameters(build()) / 1e6, digits) == expected


def test_backbones_have_the_size_of_their_originals():
    with torch.device("meta"):
        assert parameters(resnet50()) + CLASSIFIER == 25_557_032
        assert parameters(resnet101()) + CLASSIFIER == 44_549_160
        assert parameters(MobileNetV2(last_conv=True)) + 1280 * 1000 + 1000 == 3_504_872
        assert round((parameters(xception65()) + CLASSIFIER) / 1e6, 1) == 39.9  # timm's
        vgg = parameters(VGG16()) + parameters(FullyConvolutional(512)) + 4096 * 1000 + 1000
        assert vgg == 138_357_544


@pytest.mark.parametrize(
    ("build", "size", "expected", "tolerance"),
    [
        # Of the ImageNet models: He et al., Sandler et al., timm's card of xception65, whose count
        # has the batch norms and the classifier too.
        (lambda: resnet50(output_stride=32), 224, 4.09e9, 0.01),
        (lambda: MobileNetV2(output_stride=32, last_conv=True), 224, 300e6, 0.01),
        (lambda: xception65(output_stride=32), 299, 14.0e9, 0.015),
        # Sandler et al. 2018, Table 7.
        (lambda: deeplabv3(atrous_rates=(), **MOBILE), 513, 2.75e9, 0.01),
        # Chen et al. 2018 (v3+), Table 5: separable ASPP and decoder, output strides 16 and 8.
        (lambda: deeplabv3plus(backbone="xception65"), 513, 54.17e9, 0.005),
        (lambda: deeplabv3plus(backbone="xception65", output_stride=8), 513, 177.10e9, 0.005),
    ],
)
def test_multiply_adds_are_those_of_the_papers(build, size, expected, tolerance):
    with torch.device("meta"):
        model = build()
    use_backend(model, "torch")
    assert multiply_adds(model, size) == pytest.approx(expected, rel=tolerance)


def test_unet_of_the_paper_gives_388_pixels_for_572():
    with torch.device("meta"):
        model = unet(2, padding="valid", batch_norm=False, in_channels=1).eval()
        assert model(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
        with pytest.raises(ValueError, match="x must be at least 188x188 pixels"):
            model(torch.empty(1, 1, 187, 200))
        assert min(model(torch.empty(1, 1, 188, 189)).shape[2:]) > 0


def test_valid_convolutions_see_what_padded_ones_see_far_from_the_border():
    # Deeper, the poolings of the two begin on different pixels.
    same = build("unet", depth=1).eval()
    valid = build("unet", depth=1, padding="valid").eval()
    x = torch.randn(1, 3, 40, 46)
    with torch.no_grad():
        expected, got = same(x), valid(x)
    border = (x.shape[-1] - got.shape[-1]) // 2
    # Padding reaches as far into the image as the border is wide.
    inner = expected[..., border:-border, border:-border]
    assert got.shape == inner.shape
    torch.testing.assert_close(got, inner, rtol=1e-4, atol=1e-4)


def test_fcn_8s_is_the_caffe_model_written_out():
    model = build("fcn8s").eval()
    state = model.state_dict()
    x = torch.randn(1, 3, 45, 70)

    def conv(name, y, padding=0):
        return F.conv2d(y, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    pools, y, number = [], x, 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            y = conv(f"backbone.features.{number}", y, 1 if number else 100).relu()
            number += 2
        y = F.max_pool2d(y, 2, 2, ceil_mode=True)
        number += 1
        pools.append(y)
    y = conv("score", conv("fc.fc7", conv("fc.fc6", y).relu()).relu())
    for i, (pool, offset) in enumerate((("pool4", 5), ("pool3", 9))):
        y = F.conv_transpose2d(y, state[f"upsample.{i}.weight"], stride=2)
        skip = conv(f"skip_scores.{pool}", pools[int(pool[-1]) - 1])
        y = y + skip[..., offset : offset + y.shape[2], offset : offset + y.shape[3]]
    y = F.conv_transpose2d(y, state["upsample.2.weight"], stride=8)[..., 31 : 31 + 45, 31 : 31 + 70]
    with torch.no_grad():
        torch.testing.assert_close(model(x), y, rtol=1e-4, atol=1e-5)


def test_deconvolution_begins_as_bilinear_interpolation():
    x = torch.randn(1, 2, 6, 7)
    y = F.conv_transpose2d(x, bilinear_kernel(2, 4), stride=4, padding=2)
    expected = F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=False)
    # Past the outermost pixels' centres the one extrapolates zeros, the other the pixel.
    torch.testing.assert_close(y[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])
    learnt, fixed = build("fcn8s"), build("fcn32s")
    assert all(p.requires_grad for p in learnt.upsample.parameters())
    assert not any(p.requires_grad for p in fixed.upsample.parameters())


def test_fully_connected_layers_become_convolutions():
    torch.manual_seed(0)
    linear6, linear7 = nn.Linear(4 * 49, 8), nn.Linear(8, 8)
    state = {
        f"classifier.{i}.{key}": t
        for i, layer in ((0, linear6), (3, linear7))
        for key, t in layer.state_dict().items()
    }
    state["features.0.weight"] = torch.zeros(1)
    converted = vgg16_as_convolutions(state)
    assert converted.pop("features.0.weight") is state["features.0.weight"]
    fc = FullyConvolutional(4, 8, padding=0).eval()
    fc.load_state_dict(converted)
    x = torch.randn(2, 4, 7, 7)
    expected = linear7(linear6(x.flatten(1)).relu()).relu()
    torch.testing.assert_close(fc(x).flatten(1), expected)

    fewer = vgg16_as_convolutions(state, kernel_size=3, channels=4)
    assert torch.equal(fewer["fc6.weight"][1], converted["fc6.weight"][2][:, ::3, ::3])
    assert fewer["fc7.weight"].shape == (4, 4, 1, 1)


def test_deeplab_v2_takes_the_maximum_over_scales():
    model, single = build("deeplabv2"), build("deeplabv2", scales=(1.0,))
    model.eval(), single.eval()
    x = torch.randn(1, 3, 66, 50)
    with torch.no_grad():
        one = single.scores(x)["out"]
        half = single.scores(resize(x, (33, 25), False))["out"]
        expected = torch.maximum(one, resize(half, one.shape[-2:], False))
        torch.testing.assert_close(model.scores(x)["out"], expected)
    assert (expected > one).any()


def test_pyramids_of_deeplab_v2_have_the_papers_rates():
    with torch.device("meta"):
        for variant, rates in {"aspp_s": (2, 4, 8, 12), "aspp_l": (6, 12, 18, 24)}.items():
            resnet = deeplabv2(variant=variant)
            vgg = deeplabv2(variant=variant, backbone="vgg16")
            assert tuple(c.dilation[0] for c in resnet.classifier.children()) == rates
            assert tuple(head[0].fc6.dilation[0] for head in vgg.classifier) == rates


def dilations(layer):
    return [block.conv2.dilation[0] for block in layer]


def test_styles_of_dilation_differ_in_the_first_block():
    with torch.device("meta"):
        torchvision = resnet50(output_stride=8)
        paper = resnet50(output_stride=8, dilation_style="paper")
        grid = resnet50(output_stride=16, dilation_style="paper", multi_grid=(1, 2, 4))
    assert dilations(torchvision.layer3) == [1, 2, 2, 2, 2, 2]
    assert dilations(torchvision.layer4) == [2, 4, 4]
    assert dilations(paper.layer3) == [2] * 6
    assert dilations(paper.layer4) == [4] * 3
    assert dilations(grid.layer3) == [1] * 6
    assert dilations(grid.layer4) == [2, 4, 8]
    assert dilated_stages((2, 2), 4, "paper", input_stride=2) == [(2, 1, 1), (1, 2, 2)]


@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "xception65"])
def test_features_have_their_strides_and_channels(name, output_stride):
    with torch.device("meta"):
        backbone = build_backbone(name, output_stride=output_stride)
        features = backbone(torch.empty(1, 3, 129, 193))
    strides = {"low_level": 4, "aux": min(16, output_stride), "out": output_stride}
    for key, stride in strides.items():
        size = (128 // stride + 1, 192 // stride + 1)
        assert features[key].shape == (1, backbone.channels[key], *size), key


def test_vgg_of_deeplab_is_dense():
    with torch.device("meta"):
        features = VGG16(output_stride=8)(torch.empty(1, 3, 321, 321))
    assert features["out"].shape == (1, 512, 41, 41)


@pytest.fixture(scope="module")
def torchvision_segmentation():
    """torchvision's models: its Python code, without its compiled ops where they do not load."""
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    library = torch.library.Library("torchvision", "FRAGMENT")
    try:
        # Beside a CPU build of torch nothing declares the ops that its import refers to.
        for op in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, op):
                library.define(f"{op}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        yield importlib.import_module("torchvision.models.segmentation")
    finally:
        library._destroy()


@pytest.mark.parametrize("name", ["deeplabv3", "fcn"])
def test_keys_and_outputs_are_torchvisions(name, torchvision_segmentation):
    original = getattr(torchvision_segmentation, f"{name}_resnet50")(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    ).eval()
    model = {"deeplabv3": deeplabv3, "fcn": fcn}[name](5, aux=True).eval()
    assert list(model.state_dict()) == list(original.state_dict())
    model.load_state_dict(original.state_dict())
    x = torch.randn(1, 3, 65, 49)
    with torch.inference_mode():
        got, expected = model(x), original(x)
    torch.testing.assert_close(got, dict(expected), rtol=1e-4, atol=1e-4)


def test_keys_are_torchvisions_names():
    with torch.device("meta"):
        keys = set(deeplabv3(aux=True).state_dict())
    block = {f"conv{i}.weight" for i in (1, 2, 3)} | {f"bn{i}.running_var" for i in (1, 2, 3)}
    assert {f"backbone.layer3.5.{key}" for key in block} <= keys
    assert {
        "backbone.conv1.weight",
        "backbone.layer1.0.downsample.0.weight",
        "backbone.layer1.0.downsample.1.bias",
        "classifier.0.convs.0.0.weight",
        "classifier.0.convs.4.1.weight",
        "classifier.0.convs.4.2.running_mean",
        "classifier.0.project.0.weight",
        "classifier.1.weight",
        "classifier.2.num_batches_tracked",
        "classifier.4.bias",
        "aux_classifier.0.weight",
        "aux_classifier.1.weight",
        "aux_classifier.4.weight",
    } <= keys
