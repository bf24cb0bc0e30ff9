"""optimize_: the same outputs, gradients, keys and objects; restore_ gives back what was."""

import copy

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.blocks import ASPP, BasicBlock, ConvModule, InvertedResidual, SegNet
from tests.optimize.optimize_cases import Calls, close, run
from tests.zoo.other_models import with_statistics

BLOCKS = {
    "basic_block": (
        lambda: BasicBlock(8, 32, dilation=2),
        8,
        "conv + batch norm + residual + relu",
    ),
    "strided_block": (lambda: BasicBlock(8, 32, 2), 8, "conv + batch norm + residual + relu"),
    "inverted_residual": (lambda: InvertedResidual(8, 40), 8, "conv + batch norm + residual"),
    "conv_module": (lambda: ConvModule(8, 32), 8, "conv + batch norm + leaky_relu"),
    "aspp": (lambda: ASPP(8, 32), 8, "fastseg.aspp"),
    "separable_aspp": (lambda: ASPP(8, 32, separable=True), 8, "fastseg.aspp"),
    "segnet": (SegNet, 3, "byte codes"),
}


def model_of(name: str) -> tuple[nn.Module, torch.Tensor, str]:
    build, channels, expected = BLOCKS[name]
    model = with_statistics(build())
    x = torch.randn(2, channels, 19, 14)
    # Depthwise kernels want channels_last.
    return model, x.contiguous(memory_format=torch.channels_last), expected


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", BLOCKS)
def test_inference_is_equal_and_restored_exactly(name, mode):
    model, x, detail = model_of(name)
    expected, keys, classes = run(model, x), list(model.state_dict()), [*map(type, model.modules())]
    parameters = [*model.parameters()]
    report = fastseg.optimize_(model, mode=mode)
    # In training torch's kernels run where there are few channels.
    computed = report.swapped if mode == "infer" else report.swapped + report.in_evaluation
    assert detail in [entry.detail for entry in computed], str(report)
    if mode == "infer":
        assert report.left == []
    with Calls() as calls:
        actual = run(model, x)
    close(actual, expected)
    assert not {"cat", "batch_norm", "native_batch_norm"} & {*calls.names}
    assert list(model.state_dict()) == keys
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    fastseg.restore_(model)
    assert [*map(type, model.modules())] == classes
    assert torch.equal(run(model, x), expected)
    assert all(vars(m).keys() <= vars(q).keys() for m, q in zip(
        model.modules(), BLOCKS[name][0]().modules(), strict=True))  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_training_has_the_same_gradients_and_statistics(name):
    model, x, _ = model_of(name)
    x = x.repeat(2, 1, 2, 2)  # enough values a channel for a batch's statistics
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode="train")
    results, statistics = [], []
    for m in (model.double(), ours):
        m.train()
        inputs = x.clone().to(next(m.parameters()).dtype).requires_grad_()
        y = m(inputs * 1)  # a block may write to its input
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        gradients = [p.grad for p in m.parameters()]
        results.append([y.detach(), inputs.grad, *gradients])
        statistics.append([*m.buffers()])
    for actual, expected in zip(*statistics[::-1], strict=True):
        close(actual.double(), expected.double())
    largest = max(t.abs().max().item() for t in results[0])
    for actual, expected in zip(*results[::-1], strict=True):
        # The bias before a batch norm has no gradient but rounding.
        scale = max(expected.abs().max().item(), 0.05 * largest)
        close(actual.double() / scale, expected.double() / scale, 1e-4)


@pytest.mark.parametrize("name", ["basic_block", "aspp", "segnet"])
def test_gradients_of_batch_norms_in_evaluation(name):
    model, x, _ = model_of(name)
    gradients = []
    for mode in (None, "train"):
        ours = copy.deepcopy(model)
        if mode:
            fastseg.optimize_(ours, mode=mode)
        ours(x.clone()).square().mean().backward()
        gradients.append([p.grad for p in ours.parameters()])
    for actual, expected in zip(*gradients, strict=True):
        close(actual, expected, 1e-4)


def test_modules_of_one_pixel_and_without_batch():
    model = with_statistics(nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU()))
    inputs = torch.randn(1, 8, 1, 1), torch.randn(8, 6, 6)
    expected = [run(model, x) for x in inputs]
    fastseg.optimize_(model, mode="infer")
    for x, y in zip(inputs, expected, strict=True):
        close(run(model, x), y)


def test_infer_mode_says_no_to_training_and_folds_loaded_weights():
    model, x, _ = model_of("basic_block")
    other = with_statistics(BasicBlock(8, 32, dilation=2))
    fastseg.optimize_(model, mode="infer")
    with pytest.raises(RuntimeError, match="restore_"):
        model.train()
    model.eval()
    folded = {id(b) for b in model.buffers()}
    model.load_state_dict(other.state_dict())
    close(run(model, x), run(other, x))
    # What has been captured in a CUDA graph reads the same memory.
    assert {id(b) for b in model.buffers()} == folded
    fastseg.restore_(model)
    model.train()


def test_train_mode_follows_the_weights():
    model, x, _ = model_of("basic_block")
    fastseg.optimize_(model)
    run(model, x)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(x).square().mean().backward()
    optimizer.step()
    model.eval()
    plain = BasicBlock(8, 32, dilation=2).eval()
    plain.load_state_dict(model.state_dict())
    close(run(model, x), run(plain, x))


def test_bad_arguments():
    model, _, _ = model_of("basic_block")
    with pytest.raises(TypeError, match="Module"):
        fastseg.optimize_(lambda x: x)
    with pytest.raises(ValueError, match="mode"):
        fastseg.optimize_(model, mode="fast")
    with pytest.raises(ValueError, match="eval"):
        fastseg.optimize_(model.train(), mode="infer")
    fastseg.optimize_(model)
    with pytest.raises(ValueError, match="restore_"):
        fastseg.optimize_(model)


@torch.no_grad()
def test_statistics_that_are_taken_away():
    """Batch norm normalises by the batch then, as torch's does in evaluation too."""
    block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    model, x = with_statistics(block), torch.randn(2, 4, 8, 8)
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode="infer")
    kept = ours[1].running_mean, ours[1].running_var
    for m in (model, ours):
        m[1].running_mean = m[1].running_var = None
        m.double().float()
        m.load_state_dict(m.state_dict())
    close(ours(x), model(x))
    close(torch.compile(ours, backend="eager")(x), model(x))
    for m in (model, ours):
        m[1].weight.mul_(2)
        m[1].running_mean, m[1].running_var = kept
    close(ours(x), model(x))
