"""SegNet: its size, its meaning against a plain functional forward, and its two backends."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastseg.models import build_model, list_models, segnet, segnet_basic

# (in, out) of VGG16's 13 convolutions, by stage.
VGG16 = (
    ((3, 64), (64, 64)),
    ((64, 128), (128, 128)),
    ((128, 256), (256, 256), (256, 256)),
    ((256, 512), (512, 512), (512, 512)),
    ((512, 512), (512, 512), (512, 512)),
)
SIZES = [(16, 16), (45, 60), (37, 53), (90, 31)]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def convolutions(module):
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def basic(backend):
    """Return a small SegNet-Basic, equal for every backend, with moved running statistics."""
    torch.manual_seed(0)
    model = segnet_basic(5, width=8, kernel_size=3, backend="torch")
    model(torch.randn(4, 3, 32, 32))
    copied = segnet_basic(5, width=8, kernel_size=3, backend=backend)
    copied.load_state_dict(model.state_dict())
    return copied


def basic_pair():
    return basic("torch"), basic("fastseg")


def functional_segnet_basic(state, x, training):
    """SegNet-Basic written out once more, from the paper."""

    def normalised(x, prefix):
        return F.batch_norm(
            x,
            state[f"{prefix}.running_mean"].clone(),
            state[f"{prefix}.running_var"].clone(),
            state[f"{prefix}.weight"],
            state[f"{prefix}.bias"],
            training,
        )

    pooled = []
    for i in range(4):
        x = F.conv2d(x, state[f"encoder.{i}.convolutions.0.weight"], padding="same")
        x = normalised(x, f"encoder.{i}.pool").relu()
        size = x.shape
        x, indices = F.max_pool2d(x, 2, 2, return_indices=True)
        pooled.append((indices, size))
    for i in range(4):
        indices, size = pooled[3 - i]
        full = torch.zeros(*size[:2], size[2] * size[3])
        full.scatter_(2, indices.flatten(2), x.flatten(2))
        x = F.conv2d(full.view(size), state[f"decoder.{i}.convolutions.0.weight"], padding="same")
        x = normalised(x, f"decoder.{i}.convolutions.1")
    return F.conv2d(x, state["classifier.weight"], state["classifier.bias"])


def test_segnet_has_the_13_convolutions_of_vgg16_and_their_mirror():
    model = segnet(11, backend="torch")
    forward = [pair for stage in VGG16 for pair in stage]
    encoder = [(c.in_channels, c.out_channels) for c in convolutions(model.encoder)]
    assert encoder == forward
    decoder = [
        (c.out_channels, c.in_channels) for c in [*convolutions(model.decoder), model.classifier]
    ]
    assert decoder[::-1] == [(11, 64), *forward[1:]]
    assert [len(convolutions(stage)) for stage in model.encoder] == [2, 2, 3, 3, 3]
    assert [len(convolutions(stage)) for stage in model.decoder] == [3, 3, 3, 2, 1]


def test_parameter_counts_follow_from_the_definitions():
    forward = [pair for stage in VGG16 for pair in stage]
    weights = sum(9 * i * o for i, o in forward)
    expected = weights + sum(2 * o for _, o in forward)  # encoder and its batch norms
    expected += weights - 9 * 3 * 64 + sum(2 * i for i, _ in forward[1:])  # decoder
    expected += 9 * 64 * 11 + 11  # classifier
    assert parameters(segnet(11, backend="torch")) == expected == 29_441_419

    expected = 49 * (3 * 64 + 7 * 64 * 64) + 8 * 2 * 64 + 64 * 11 + 11
    assert parameters(segnet_basic(11, backend="torch")) == expected == 1_416_075


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_segnet_basic_is_the_paper_written_out(size, training):
    model = basic("torch").train(training)
    x = torch.randn(2, 3, *size)
    # The forward first: it would see running statistics that training has moved.
    expected = functional_segnet_basic(model.state_dict(), x, training)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["fastseg", "torch"])
def test_the_decoder_of_segnet_has_relu_and_that_of_basic_has_not(backend):
    def lowest(model):
        y = torch.randn(1, model.decoder[0].convolutions[0].in_channels, 4, 4)
        for stage in model.decoder:
            y = stage.convolutions(y)
            yield y.min()

    assert all(low == 0 for low in lowest(segnet(2, backend=backend)))
    assert all(low < 0 for low in lowest(segnet_basic(2, backend=backend)))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_backends_are_as_exact_as_each_other_in_training(size, memory_format):
    plain, fast = (model.to(memory_format=memory_format) for model in basic_pair())
    exact = copy.deepcopy(plain).double()
    x = torch.randn(2, 3, *size).to(memory_format=memory_format)
    results = []
    for model in (exact, plain, fast):
        y = model(x.to(model.classifier.weight.dtype))
        y.square().mean().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        results.append({"output": y.detach(), **gradients, **dict(model.named_buffers())})
    for name, expected in results[0].items():
        theirs, ours = ((result[name] - expected).abs().max() for result in results[1:])
        assert ours <= 4 * theirs + 1e-6 * expected.abs().max(), name


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", SIZES)
def test_backends_agree_in_evaluation(size, memory_format):
    plain, fast = (model.eval().to(memory_format=memory_format) for model in basic_pair())
    x = torch.randn(2, 3, *size).to(memory_format=memory_format)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), plain(x), rtol=1e-5, atol=1e-5)


def test_backends_of_the_full_segnet_agree():
    torch.manual_seed(0)
    plain, fast = segnet(4, backend="torch"), segnet(4, backend="fastseg")
    fast.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 45, 67)
    exact = copy.deepcopy(plain).double()(x.double())
    theirs, ours = ((model(x) - exact).abs().max() for model in (plain, fast))
    assert ours <= 4 * theirs
    with torch.inference_mode():
        expected, got = plain.eval()(x), fast.eval()(x)
    assert got.shape == (2, 4, 45, 67)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_state_dict_keys_do_not_depend_on_the_backend():
    plain, fast = basic_pair()
    assert list(plain.state_dict()) == list(fast.state_dict())


def test_a_model_can_be_copied():
    model = basic("fastseg").eval()
    x = torch.randn(1, 3, 20, 20)
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_list_models_are_what_build_model_builds():
    assert {"segnet", "segnet_basic"} <= set(list_models())
    model = build_model("segnet_basic", 3, width=4, kernel_size=5, backend="torch")
    assert model.classifier.weight.shape == (3, 4, 1, 1)
    with pytest.raises(ValueError, match=r"name must be one of \['deeplabv1', .*, got 'vgg'"):
        build_model("vgg", 3)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 15, 40), "x must be at least 16x16 pixels, for it is halved 4 times; got 15x40"),
        ((1, 1, 32, 32), r"x must be \(N, 3, H, W\), got \(1, 1, 32, 32\)"),
        ((3, 32, 32), r"x must be \(N, 3, H, W\), got \(3, 32, 32\)"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        segnet_basic(2, width=2, kernel_size=3, backend="torch")(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"kernel_size": 4}, "kernel_size must be odd and positive, got 4"),
        ({"backend": "cudnn"}, r"backend must be one of \('fastseg', 'torch'\), got 'cudnn'"),
    ],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        segnet_basic(**{"num_classes": 2, "backend": "torch", **options})
