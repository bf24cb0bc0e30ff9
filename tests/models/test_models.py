"""What all models have in common: sizes, backends, auxiliary heads, CRFs, training, compiling."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg import PairwiseBilateral, PairwiseGaussian, dense_crf, models, optimize_
from fastseg.models import build_model, list_models
from fastseg.models._model import MEAN, STD
from fastseg.nn import DenseCRF, UpsampleCrossEntropyLoss
from tests.models.small_models import SMALL, build

NAMES = sorted(SMALL)


def close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_every_model_can_be_built_by_its_name_with_classes_alone():
    deeplabs = ["deeplabv1", "deeplabv2", "deeplabv3", "deeplabv3plus"]
    fcns = ["fcn", "fcn16s", "fcn32s", "fcn8s"]
    assert list_models() == [*deeplabs, *fcns, "segnet", "segnet_basic", "unet"]
    assert {name.split()[0] for name in SMALL} | {"segnet"} == set(list_models())
    with torch.device("meta"):
        for name in list_models():
            model = build_model(name, 7).eval()
            assert model(torch.empty(1, 3, 97, 65)).shape == (1, 7, 97, 65), name
            options = inspect.signature(getattr(models, name)).parameters
            assert next(iter(options)) == "num_classes"
            assert {"crf", "backend"} <= set(options)


@pytest.mark.parametrize("name", NAMES)
def test_backends_agree_on_odd_sizes(name):
    fast, plain = build(name, aux=True), build(name, aux=True, backend="torch")
    assert list(fast.state_dict()) == list(plain.state_dict())
    x = torch.randn(2, 3, 67, 43)
    with torch.inference_mode():
        got, expected = fast.eval()(x), plain.eval()(x)
    assert list(got) == list(expected) == ["out", "aux"]
    for key in got:
        assert got[key].shape == (2, 5, 67, 43)
        close(got[key], expected[key])


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus xception65", "unet bilinear"])
def test_the_torch_backend_calls_no_op_of_fastseg(name):
    def called(backend):
        with torch.profiler.profile() as profile, torch.inference_mode():
            build(name, backend=backend).eval()(torch.randn(1, 3, 32, 32))
        return any(event.key.startswith("fastseg::") for event in profile.key_averages())

    assert called("fastseg")
    assert not called("torch")


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_is_trained(name):
    model = build(name, aux=True).train()
    out = model(torch.randn(2, 3, 67, 43))
    (out["out"].square().mean() + out["aux"].square().mean()).backward()
    idle = [
        key
        for key, p in model.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    assert not idle


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus xception65", "unet"])
def test_training_is_torchs(name):
    gradients = []
    for backend in ("fastseg", "torch"):
        # Rounding in float32 would go through kinks of ReLU here and there.
        model = build(name, backend=backend).double().train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        torch.manual_seed(1)
        model(torch.randn(2, 3, 48, 48).double()).square().mean().backward()
        gradients.append({key: p.grad for key, p in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["deeplabv3", "unet nearest"])
def test_models_compile_to_one_graph(name):
    model = build(name).eval()
    x = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        close(compiled(x), model(x))


@pytest.mark.parametrize("name", ["deeplabv2", "segnet_basic"])
def test_models_can_be_copied(name):
    model = build(name).eval()
    x = torch.randn(1, 3, 33, 33)
    before = model(x)
    assert torch.equal(copy.deepcopy(model)(x), before)


def test_evaluation_after_a_step_uses_the_new_weights():
    model = build("deeplabv3").eval()
    x = torch.randn(2, 3, 33, 33)
    with torch.no_grad():
        before = model(x)
        model.backbone.bn1.weight.mul_(2)
        model.train()(x)  # moves the running statistics
        after = model.eval()(x)
        plain = build("deeplabv3", backend="torch").eval()
        plain.load_state_dict(model.state_dict())
        close(after, plain(x))
    assert (after - before).abs().max() > 1e-3


def test_a_crf_after_the_network_runs_in_evaluation_alone():
    x, image = torch.randn(2, 3, 24, 20), torch.rand(2, 3, 24, 20) * 255
    plain, model = build("unet"), build("unet", crf="post")
    assert not any(p.requires_grad for p in model.crf.parameters())
    logits = plain(x)
    torch.testing.assert_close(model(x, image), logits)
    with torch.no_grad():
        out = model.eval()(x, image)
        q = model.crf(-plain.eval()(x), image)
    torch.testing.assert_close(out.softmax(1), q, rtol=1e-4, atol=1e-5)


def test_a_crf_after_the_network_is_deeplab_v2s():
    crf = build("unet", crf="post").crf
    assert (crf.iterations, crf.quality) == (10, "high")
    image = torch.rand(1, 3, 24, 20) * 255
    unary = torch.randn(1, 5, 24, 20)
    terms = [PairwiseGaussian(1, 3), PairwiseBilateral(67, 3, 4)]
    torch.testing.assert_close(crf(unary, image), dense_crf(unary, image, terms))


def test_a_crf_as_a_layer_is_trained_and_sees_the_image():
    model = build("unet", crf="layer")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    image = torch.rand(2, 3, 24, 20) * 255
    x = (image / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    out = model(x)
    nn.functional.cross_entropy(out, torch.randint(5, (2, 24, 20))).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.crf.parameters())
    assert model.down[0].conv1[0].weight.grad.any()
    with torch.no_grad():
        model.eval()
        # By default the image is what the input was normalised from.
        torch.testing.assert_close(model(x), model(x, image), rtol=1e-3, atol=1e-3)
        assert (model(x) - model(x, torch.zeros_like(image))).abs().max() > 1e-2


@pytest.mark.parametrize(("channels", "seen"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (5, [0, 1, 2])])
def test_the_crf_of_other_channels_than_three(channels, seen):
    """It sees the first three of more, and the first in grey of fewer."""
    model = build("unet", crf="post", in_channels=channels).eval()
    x = torch.randn(1, channels, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    image = ((x[:, seen] * std + mean) * 255).relu()
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(x, image))


def test_a_crf_of_ones_own():
    crf = DenseCRF(5, iterations=2)
    assert build("unet", crf=crf).crf is crf


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"crf": "later"}, "crf must be None, one of"),
        ("unet", {"backend": "cudnn"}, "backend must be one of"),
        ("unet", {"upsampling": "cubic"}, "upsampling must be one of"),
        ("unet", {"padding": "reflect"}, "padding must be one of"),
        ("unet", {"depth": 0}, "depth and width must be positive, got 0 and 4"),
        ("unet", {"padding": "valid", "crf": "post"}, "crf needs logits of the image's size"),
        ("deeplabv1", {"variant": "5x5"}, "variant must be one of"),
        ("deeplabv2", {"variant": "aspp_m"}, "variant must be one of"),
        ("deeplabv2", {"scales": ()}, "scales must be positive numbers"),
        ("deeplabv2", {"backbone": "vgg19"}, "backbone must be vgg16, resnet50 or resnet101"),
        ("deeplabv3", {"backbone": "resnet18"}, "backbone must be one of"),
        (
            "deeplabv3",
            {"output_stride": 2},
            r"output_stride must be one of \[4, 8, 16, 32\], got 2",
        ),
        ("deeplabv3", {"output_stride": 4}, r"one of \(8, 16, 32\) unless atrous_rates are given"),
        ("deeplabv3plus", {"output_stride": 4}, r"one of \(8, 16, 32\) unless atrous_rates are"),
        ("unet", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ("fcn8s", {"in_channels": 0}, "in_channels must be at least 1, got 0"),
        ("deeplabv3", {"dilation_style": "tf"}, "dilation_style must be one of"),
        ("deeplabv3", {"multi_grid": (1, 2)}, "multi_grid must have a factor for each of the 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_arguments_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 5}, "smp:Unet: classes must not be given, got 5: num_classes is"),
        ({"aux_params": {"classes": 2}}, "smp:Unet: aux_params must not be given, got {'classes'"),
    ],
)
def test_options_of_another_packages_network_that_have_no_place(options, message):
    with pytest.raises(ValueError, match=message):
        build_model("smp:Unet", 3, **options)


@pytest.mark.parametrize("crf", [None, "post"])
def test_one_logit_has_no_class_map(crf):
    """Binary networks of other packages have one output; the highest of one is always class 0."""
    model = build_model("unet", 1, width=4, crf=crf).eval()
    x = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"at least 2 classes, got 1, .* model\(x\) > 0"):
        model.predict(x)
    assert model(x).shape == (1, 1, 16, 16)


@pytest.mark.parametrize(
    ("name", "optimised"),
    [
        *((name, False) for name in NAMES if not name.startswith("segnet")),
        ("deeplabv3 mobile", True),  # an ASPP, depthwise convolutions and a head
        ("unet", True),
    ],
)
def test_a_trace_is_for_all_sizes(name, optimised):
    """Of fastseg's ops, and of torch's in an optimised model. Nothing traces a max-unpooling."""
    model = build(name, backend="torch" if optimised else "fastseg").eval()
    example, x = torch.randn(1, 3, 48, 32), torch.randn(2, 3, 33, 65)
    with torch.no_grad():
        if optimised:
            optimize_(model, mode="infer")
        traced = torch.jit.trace(model, example)
        assert optimised or "fastseg::" in str(traced.inlined_graph)
        close(traced(x), model(x))


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\), got \(1, 4, 32, 32\)"):
        build("deeplabv3")(torch.zeros(1, 4, 32, 32))
    with pytest.raises(ValueError, match="x must be at least 16x16 pixels, for it is halved 4"):
        build("unet")(torch.zeros(1, 3, 15, 40))


@pytest.mark.parametrize("name", NAMES)
def test_predicted_classes_are_those_of_the_logits(name):
    model = build(name, aux=True).eval()
    x = torch.randn(2, 3, 67, 43)
    with torch.inference_mode():
        logits = model(x)["out"]
    classes, confidence = model.predict(x, return_confidence=True)
    assert torch.equal(classes, model.predict(x))
    assert classes.dtype == torch.uint8
    chosen = logits.gather(1, classes.long()[:, None])[:, 0]
    close(chosen, logits.amax(1))
    close(confidence, logits.softmax(1).amax(1))


def test_prediction_with_a_crf_is_that_of_its_logits():
    model = build("unet", crf="post").eval()
    x, image = torch.randn(1, 3, 32, 40), torch.rand(1, 3, 32, 40) * 255
    with torch.inference_mode():
        logits = model(x, image)
    chosen = logits.gather(1, model.predict(x, image).long()[:, None])[:, 0]
    close(chosen, logits.amax(1))
    with pytest.raises(ValueError, match=r"x must be \(N, 3, H, W\)"):
        model.predict(torch.zeros(1, 4, 32, 40))


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_logits(name):
    model = build(name, aux=True)
    x, target = torch.randn(2, 3, 67, 43), torch.randint(-1, 5, (2, 67, 43))
    weight = torch.rand(5)
    criterion = UpsampleCrossEntropyLoss(weight, ignore_index=-1, align_corners=model.align_corners)
    model.eval()  # dropout draws other numbers in every pass

    def gradients(loss):
        parameters = [p for p in model.parameters() if p.requires_grad]
        return torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    out = model(x)
    expected = sum(
        factor * F.cross_entropy(out[key], target, weight, ignore_index=-1)
        for key, factor in (("out", 1), ("aux", 0.4))
    )
    loss = model(x, target=target, criterion=criterion)
    torch.testing.assert_close(loss, expected)
    wanted = gradients(expected)
    largest = max(g.abs().max().item() for g in wanted)
    for got, want in zip(gradients(loss), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * largest)
    with pytest.raises(ValueError, match=r"target must be \(N, H, W\) = \(2, 67, 43\)"):
        model(x, target=target[:, 1:])
