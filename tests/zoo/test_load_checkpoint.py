"""fastseg.load_checkpoint and from_checkpoint: files, strictness, errors."""

from __future__ import annotations

import pytest
import torch

import fastseg
from fastseg.models import build_model
from fastseg.zoo import checkpoint
from fastseg.zoo.checkpoint import CheckpointError
from tests.models.small_models import SMALL, build
from tests.zoo import zoo_definitions as definitions

RESNET = {"width": 4, "layers": (1, 1, 1, 1)}
OPTIONS = {"backbone_options": RESNET, "aspp_channels": 8}


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def test_dtypes_stay_the_models(original, tmp_path):
    theirs, ours = original
    path = tmp_path / "checkpoint.pth"
    torch.save(theirs.half().state_dict(), path)
    fastseg.load_checkpoint(ours.double(), path)
    assert {t.dtype for t in ours.state_dict().values()} == {torch.float64, torch.int64}
    assert torch.equal(ours.classifier.weight, theirs.outc.conv.weight.double())


def test_all_that_does_not_fit_is_in_one_message_and_the_model_stays(original, tmp_path):
    theirs, ours = original
    state = theirs.state_dict()
    del state["inc.double_conv.0.weight"], state["up2.up.bias"]
    del state["down1.maxpool_conv.1.double_conv.1.num_batches_tracked"]  # may be absent
    state["inc.double_conv.0.weight"] = torch.zeros(4, 1, 3, 3)
    state["extra.weight"] = torch.zeros(1)
    state["down9.maxpool_conv.1.double_conv.0.weight"] = torch.zeros(1)
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    before = {key: t.clone() for key, t in ours.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        fastseg.load_checkpoint(ours, path)
    message = str(error.value)
    assert "checkpoint.pth, taken for a unet of milesial, does not fit UNet: " in message
    assert "1 missing: up.1.up.bias;" in message
    assert (
        "2 unexpected: extra.weight, down9.maxpool_conv.1.double_conv.0.weight;" in message
    )  # by the file's names
    assert (
        "1 misshapen: down.0.conv1.0.weight (4, 1, 3, 3) instead of (4, 3, 3, 3)"
        " (in the file inc.double_conv.0.weight)" in message
    )
    assert all(torch.equal(t, before[key]) for key, t in ours.state_dict().items())

    report = fastseg.load_checkpoint(ours, path, strict=False)
    assert report.missing == ("up.1.up.bias",)
    assert report.misshapen == ("down.0.conv1.0.weight",)
    assert report.unexpected == (
        "extra.weight",
        "down9.maxpool_conv.1.double_conv.0.weight",
    )
    assert "1 missing: up.1.up.bias" in str(report)
    assert torch.equal(ours.down[0].conv1[0].weight, before["down.0.conv1.0.weight"])
    assert torch.equal(ours.classifier.weight, theirs.outc.conv.weight)


def test_many_keys_are_listed_by_their_modules(original, tmp_path):
    theirs, ours = original
    state = {k: t for k, t in theirs.state_dict().items() if not k.startswith(("down", "up3"))}
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError) as error:
        fastseg.load_checkpoint(ours, path)
    assert "down.1.conv1.* (5 keys), down.1.conv2.* (5 keys)" in str(error.value)


def test_a_checkpoint_of_another_network_is_named(original, tmp_path):
    theirs, _ = original
    path = tmp_path / "checkpoint.pth"
    torch.save(theirs.state_dict(), path)
    with pytest.raises(CheckpointError, match="is a unet of milesial, not a deeplabv3"):
        fastseg.from_checkpoint(path, "deeplabv3")
    with pytest.raises(CheckpointError, match="no checkpoint of torchvision's"):
        fastseg.from_checkpoint(path, source="torchvision")
    with pytest.raises(ValueError, match="model must be None or one of"):
        fastseg.from_checkpoint(path, "u-net")
    with pytest.raises(ValueError, match=r"source must be one of auto, .*, got 'timm'"):
        fastseg.from_checkpoint(path, source="timm")


def test_unknown_keys_are_an_error_that_lists_the_sources(original, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save({"layers.0.weight": torch.zeros(1)}, path)
    for load in (
        lambda: fastseg.load_checkpoint(original[1], path),
        lambda: fastseg.from_checkpoint(path),
    ):
        with pytest.raises(CheckpointError) as error:
            load()
        assert "fastseg, torchvision, smp, vainf, milesial, mmseg, wkentaro, kazuto" in str(
            error.value
        )
        assert "layers.0.weight" in str(error.value)


def test_a_backbone_that_fastseg_has_not(tmp_path):
    state = build("deeplabv3").state_dict()
    state = {k: t for k, t in state.items() if "conv3" not in k}  # blocks as ResNet-18's
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    with pytest.raises(
        CheckpointError, match="has a backbone that is none of fastseg's, mobilenet_v2"
    ):
        fastseg.from_checkpoint(path)


def test_a_head_that_does_not_tell_the_classes(tmp_path):
    state = definitions.Milesial(3, 5, 4, False).state_dict()
    del state["outc.conv.weight"]
    path = tmp_path / "checkpoint.pth"
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"lacks classifier\.weight, whose shape tells"):
        fastseg.from_checkpoint(path)


def test_options_given_win(tmp_path):
    theirs = build("deeplabv3", output_stride=16)
    path = tmp_path / "checkpoint.pth"
    torch.save(theirs.state_dict(), path)
    x = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        expected = theirs.eval()(x)
        ours = fastseg.from_checkpoint(path, output_stride=16, atrous_rates=(6, 12, 18))
        torch.testing.assert_close(ours(x), expected)
        other = fastseg.from_checkpoint(path, backbone_options={"output_stride": 32})
        assert not torch.allclose(other(x), expected)
        plain = fastseg.from_checkpoint(
            path, output_stride=16, atrous_rates=(6, 12, 18), backend="torch"
        )
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_a_state_dict_of_fastseg_comes_back(name, tmp_path):
    """Also where another project's names are alike."""
    model = build(name)
    path = tmp_path / "checkpoint.pth"
    torch.save(model.state_dict(), path)
    torch.manual_seed(1)
    other = build_model(name.split()[0], 5, **SMALL[name])
    assert not same_weights(other, model)
    report = fastseg.load_checkpoint(other, path)
    assert report.source in ("fastseg", "torchvision")
    assert same_weights(other, model)
    assert fastseg.load_checkpoint(other, path, source="fastseg").model is None


@pytest.mark.parametrize("name", ["deeplabv3", "fcn", "unet"])
def test_a_crf_is_fastsegs_also_behind_a_network_of_torchvisions_keys(name, tmp_path):
    path = tmp_path / "checkpoint.pth"
    model = build(name, crf="layer")
    torch.save(model.state_dict(), path)
    torch.manual_seed(1)
    other = build(name, crf="layer")
    assert fastseg.load_checkpoint(other, path).source == "fastseg"
    assert same_weights(other, model)
    assert same_weights(fastseg.from_checkpoint(path, name, crf="layer"), model)
    message = error_of(path)
    assert f"from_checkpoint({str(path)!r}, {name!r}, crf='layer')" in message


def test_a_weights_file_carries_its_options(tmp_path):
    model = build("deeplabv3plus", **OPTIONS).half().float().eval()  # as the file keeps them
    path = tmp_path / "weights.pt"
    metadata = {"model": "deeplabv3plus", "options": OPTIONS, "classes": list("abcde")}
    checkpoint.save_model(path, model, metadata)
    x = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        loaded = fastseg.from_checkpoint(path, "deeplabv3plus")
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-3, atol=1e-3)
        assert not torch.allclose(fastseg.from_checkpoint(path, output_stride=8)(x), loaded(x))
    report = fastseg.load_checkpoint(build("deeplabv3plus"), path)
    assert (report.source, report.model) == ("fastseg", "deeplabv3plus")
    assert fastseg.zoo.recognise(path)[0] == "fastseg"
    assert report.options == OPTIONS
    with pytest.raises(CheckpointError, match="is a deeplabv3plus of fastseg, not a unet"):
        fastseg.from_checkpoint(path, "unet")


def test_a_bare_state_dict_of_fastseg_has_no_options(tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(build("unet").state_dict(), path)
    with pytest.raises(CheckpointError, match="has no options to build its model with"):
        fastseg.from_checkpoint(path, source="fastseg")


def error_of(*arguments, **options):
    with pytest.raises(CheckpointError) as error:
        fastseg.from_checkpoint(*arguments, **options)
    return str(error.value)


# Networks that differ from a source's by options that no rule reads from keys and shapes.
UNTOLD = {
    "deeplabv3plus vainf": ("decoder_convs=1", "backbone_options={'width_mult': 0.25"),
    "deeplabv3plus mobile": ("depthwise_batch_norm=True", "aspp_conv=True", "decoder_convs=1"),
    "segnet_basic": ("width=4", "kernel_size=3"),
    "deeplabv1 4x4": ("width=4", "fc_channels=8", "variant='4x4'"),
    "unet nearest": ("upsampling='nearest'",),
    "fcn32s": (),
    "unet": (),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_the_options_that_a_bare_state_dict_needs_are_named_and_load_it(name, tmp_path):
    path = tmp_path / "checkpoint.pth"
    model = build(name)
    torch.save(model.state_dict(), path)
    builder = name.split()[0]
    message = error_of(path)
    for option in UNTOLD[name]:
        assert option in message
    call = message.partition("build it and use load_checkpoint, or ")[2]
    assert call.startswith(f"from_checkpoint({str(path)!r}, {builder!r}")
    loaded = eval(f"fastseg.{call}")
    assert same_weights(loaded, model)
    if UNTOLD[name]:
        assert "; it fits with " in error_of(path, builder)
    else:
        assert same_weights(fastseg.from_checkpoint(path, builder), model)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"width": 8}, "width=4 (not 8)"),
        ({"kernel_size": 5}, "kernel_size=3 (not 5)"),
        ({"aux": True}, "aux=False (not True)"),
        ({"num_classes": 7}, "num_classes=5 (not 7)"),
        ({"width": 8, "aux": True}, "width=4 (not 8), aux=False (not True)"),
    ],
)
def test_a_wrong_option_is_named_with_the_value_that_fits(wrong, right, tmp_path):
    path = tmp_path / "weights.pt"
    metadata = {"model": "segnet_basic", "options": SMALL["segnet_basic"], "classes": list("abcde")}
    checkpoint.save_model(path, build("segnet_basic"), metadata)
    assert error_of(path, **wrong).endswith(f"; it fits with {right}")
    theirs = definitions.Milesial(3, 5, 4, False)
    torch.save(theirs.state_dict(), path)
    assert error_of(path, width=8).endswith("; it fits with width=4 (not 8)")
    assert error_of(path, depth=3).endswith("; it fits with depth=4 (not 3)")
    assert error_of(path, upsampling="bilinear").endswith(
        "; it fits with upsampling='transposed' (not 'bilinear')"
    )


def test_nothing_is_proposed_where_nothing_fits(original, tmp_path):
    theirs, _ = original
    path = tmp_path / "checkpoint.pth"
    torch.save({**theirs.state_dict(), "extra.weight": torch.zeros(1)}, path)
    assert "it fits with" not in error_of(path)


def test_an_option_that_there_is_not_is_no_fault_of_the_file(tmp_path):
    path = tmp_path / "weights.pt"
    metadata = {"model": "segnet_basic", "options": SMALL["segnet_basic"], "classes": list("abcde")}
    checkpoint.save_model(path, build("segnet_basic"), metadata)
    bare = tmp_path / "bare.pth"
    torch.save(definitions.Milesial(3, 5, 4, False).state_dict(), bare)
    for file, known in ((path, "width, kernel_size"), (bare, "depth, width, upsampling")):
        with pytest.raises(TypeError, match=f"keyword argument 'foo'; its options are {known}"):
            fastseg.from_checkpoint(file, foo=1)
    for file in (path, bare):
        with pytest.raises((TypeError, ValueError)) as error:
            fastseg.from_checkpoint(file, width="abc")
        assert file.name not in str(error.value)
    torch.save(build("deeplabv3").state_dict(), bare)
    with pytest.raises(
        TypeError, match=r"resnet50\(\) got .* 'width_mult'; its options are layers"
    ):
        fastseg.from_checkpoint(bare, backbone_options={"width_mult": 1.0})


def test_a_checkpoint_of_another_source_names_it(original, tmp_path):
    path = tmp_path / "checkpoint.pth"
    torch.save(original[0].state_dict(), path)
    assert error_of(path, source="smp").endswith("; source='milesial' fits")
