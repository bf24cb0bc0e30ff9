"""optimize_: the same outputs, gradients, keys and objects; restore_ gives back what was."""

import copy

import pytest
import torch
import torch.nn.functional as F
from blocks import ASPP, BasicBlock, ConvModule, InvertedResidual, SegNet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import with_statistics

import fastseg

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


class Calls(TorchDispatchMode):
    """The names of the ops that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def model_of(name: str) -> tuple[nn.Module, torch.Tensor, str]:
    build, channels, expected = BLOCKS[name]
    model = with_statistics(build())
    x = torch.randn(2, channels, 19, 14)
    # Depthwise kernels want channels_last.
    return model, x.contiguous(memory_format=torch.channels_last), expected


def run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(x.clone())


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", BLOCKS)
def test_inference_is_equal_and_restored_exactly(name, mode):
    model, x, detail = model_of(name)
    expected, keys, classes = run(model, x), list(model.state_dict()), [*map(type, model.modules())]
    parameters = [*model.parameters()]
    report = fastseg.optimize_(model, mode=mode)
    assert detail in [entry.detail for entry in report.swapped], str(report)
    if mode == "infer":
        assert report.left == []
    with Calls() as calls:
        actual = run(model, x)
    close(actual, expected, 1e-5)
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
        close(actual.double(), expected.double(), 1e-5)
    largest = max(t.abs().max().item() for t in results[0])
    for actual, expected in zip(*results[::-1], strict=True):
        # The bias before a batch norm has no gradient but rounding.
        scale = max(expected.abs().max().item(), 0.05 * largest)
        close(actual.double() / scale, expected.double() / scale)


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
        close(actual, expected)


class Functional(nn.Module):
    """``body(self, x)`` as forward."""

    def __init__(self, body, channels=32):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.body = body
        self.scale = 1

    def forward(self, x):
        return self.body(self, x)


FUSED = {
    "F.relu": (lambda m, x: F.relu(m.bn(m.conv(x))), "relu"),
    "positional": (lambda m, x: F.relu(m.bn(m.conv(x)), True), "relu"),
    "relu_": (lambda m, x: torch.relu_(m.bn(m.conv(x))), "relu"),
    "method": (lambda m, x: m.bn(m.conv(x)).relu(), "relu"),
    "silu": (lambda m, x: F.silu(m.bn(m.conv(x)), inplace=True), "silu"),
    "hardswish": (lambda m, x: F.hardswish(m.bn(m.conv(x))), "hardswish"),
    "relu6": (lambda m, x: F.relu6(m.bn(m.conv(x))), "relu6"),
    "no batch norm": (lambda m, x: F.leaky_relu(m.conv(x)), "conv + leaky_relu"),
    "torch.add": (lambda m, x: torch.relu(torch.add(m.bn(m.conv(x)), x)), "residual + relu"),
    "add_": (lambda m, x: m.bn(m.conv(x)).add_(x).relu_(), "residual + relu"),
    "input first": (lambda m, x: x + m.bn(m.conv(x)), "residual"),
    "broadcast": (lambda m, x: m.bn(m.conv(x)) + x.mean((2, 3), keepdim=True), "residual"),
    "twice": (lambda m, x: m.relu(m.bn(m.conv(m.relu(m.bn(m.conv(x)))))), "relu"),
}


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("case", FUSED)
def test_functional_calls(case, mode):
    body, detail = FUSED[case]
    model, x = with_statistics(Functional(body)), torch.randn(1, 32, 12, 9)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode=mode)
    assert next(entry.detail for entry in report.swapped).endswith(detail)
    close(run(model, x), expected)


def written_before_read(m, x):
    y = m.conv(x)
    x.mul_(2)
    return m.bn(y) + x


def reads_twice(m, x):
    y = m.conv(x)
    return m.bn(y) * y


def residual_written(m, x):
    x = x * 1
    y = m.bn(m.conv(x * 1))
    z = y + x
    x.add_(z)
    return m.relu(z) + x


def adds_in_place_to_the_input(m, x):
    x += m.bn(m.conv(x))
    return m.relu(x)


def steps(m, x):
    y = m.bn(m.conv(x))
    return m.relu(y) if m.training else y


def draws(m, x):
    return m.relu(m.bn(m.conv(x))) + torch.rand(1).item() * 0


def remembers(m, x):
    m.last = x
    return m.relu(m.bn(m.conv(x)))


def branches(m, x):
    return m.relu(m.bn(m.conv(x))) if x.sum() > -1e9 else x


def without_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.relu(m.bn(m.conv(x))).float()


def detached(m, x):
    with torch.no_grad():
        return m.relu(m.bn(m.conv(x)))


UNFUSED = {
    written_before_read: "follows no convolution",
    reads_twice: "follows no convolution",
    steps: "differs between training and evaluation",
    draws: "draws random numbers",
    remembers: "writes attributes",
    branches: "cannot trace",
    without_autocast: "autocast",
    detached: "gradient mode",
}


@pytest.mark.parametrize("body", UNFUSED)
def test_what_a_graph_cannot_stand_for_is_left(body):
    model, x = with_statistics(Functional(body)), torch.randn(1, 32, 12, 9)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="infer")
    reasons = [entry.detail for entry in report.left if entry.name == "bn"]
    assert len(reasons) == 1
    assert UNFUSED[body] in reasons[0]
    assert "bn" not in str([entry.name for entry in report.swapped])
    close(run(model, x), expected, 0.02 if body is without_autocast else 1e-5)
    if body is detached:
        assert not model(x).requires_grad
    if body is remembers:
        assert isinstance(model.last, torch.Tensor)


@pytest.mark.parametrize("body", [residual_written, adds_in_place_to_the_input])
def test_writes_in_place_stay_in_their_order(body):
    model, x = with_statistics(Functional(body)), torch.randn(1, 32, 12, 9)
    expected, written = x.clone(), x.clone()
    with torch.no_grad():
        y = model(expected)
        fastseg.optimize_(model, mode="infer")
        close(model(written), y)
    close(written, expected)


def test_other_arguments_run_the_block_itself():
    model, x = with_statistics(ConvModule(8, 32)), torch.randn(1, 8, 9, 9)
    expected = run(model, x), model(x, False).detach(), model(x, activate=False).detach()
    fastseg.optimize_(model, mode="infer")
    for actual, y in zip((run(model, x), model(x, False), model(x, activate=False)), expected,
                         strict=True):  # fmt: skip
        close(actual, y)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def hooked(conv: nn.Conv2d) -> nn.Conv2d:
    conv.register_forward_hook(lambda module, inputs, output: output + 1)
    return conv


@pytest.mark.parametrize(
    ("conv", "reason"),
    [
        (lambda: Doubled(8, 8, 3), "class of its own"),
        (lambda: hooked(nn.Conv2d(8, 8, 3)), "hooks"),
        (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "padding_mode"),
        (lambda: nn.Conv2d(8, 8, 2), "even kernel"),
        (lambda: nn.Conv2d(8, 8, 1, padding=3), "reach"),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3)), "class of its own"),
        (lambda: nn.ConvTranspose2d(8, 8, 2), "transposed"),
    ],
)
def test_convolutions_that_are_left(conv, reason):
    model, x = with_statistics(nn.Sequential(conv(), nn.BatchNorm2d(8))), torch.randn(1, 8, 9, 9)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="infer")
    assert report.swapped == []
    assert reason in {e.name: e.detail for e in report.left}["0"]
    assert torch.equal(run(model, x), expected)


@pytest.mark.parametrize("size", [(16, 12), (19, 13)])
def test_codes_flow_through_lists_and_blocks(size):
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.pool = nn.MaxPool2d(2, return_indices=True)

        def forward(self, x):
            x = self.conv(x)
            values, indices = self.pool(x)
            return values, (indices, x.shape)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([Stage(), Stage()])
            self.unpool = nn.MaxUnpool2d(2)

        def forward(self, x):
            stack = []
            for stage in self.stages:
                x, info = stage(x)
                stack.append(info)
            while stack:
                indices, shape = stack.pop()
                x = self.unpool(x, indices, shape)
            return x

    model, x = Model().eval(), torch.randn(2, 4, *size)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="train")
    assert [e.detail for e in report.swapped].count("byte codes") == 3
    assert torch.equal(run(model, x), expected)


def test_indices_that_go_elsewhere_stay():
    class Leaks(SegNet):
        def forward(self, x):
            y, indices = self.pool(x)
            return self.unpool(y, indices), indices

    class Mismatched(SegNet):
        def __init__(self):
            super().__init__()
            self.unpool = nn.MaxUnpool2d((2, 1), (2, 2))

    for model in (Leaks().eval(), Mismatched().eval()):
        report = fastseg.optimize_(model, mode="infer")
        assert {"pool", "unpool"} <= {entry.name for entry in report.left}
        assert type(model.pool) is nn.MaxPool2d


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_batch_norm_relu_and_pooling(mode):
    stem = nn.Sequential(nn.Conv2d(4, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    model, x = with_statistics(stem), torch.randn(2, 4, 9, 7)
    expected = run(model, x)
    fastseg.optimize_(model, mode=mode)
    with Calls() as calls:
        close(run(model, x), expected, 1e-6)
    assert "batch_norm_relu_max_pool2d" in calls.names


def test_a_sequential_is_fused_whoever_calls_it():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(2)]
            inner = [nn.Sequential(c, nn.BatchNorm2d(4), nn.ReLU()) for c in convs]
            self.features = nn.Sequential(*inner)

        def forward(self, x):
            return [stage(x) for stage in (self.features[:1], self.features)]

    model, x = with_statistics(Encoder()), torch.randn(1, 4, 9, 9)
    with torch.no_grad():
        expected = model(x)
        fastseg.optimize_(model, mode="infer")
        with Calls() as calls:
            actual = model(x)
    for y, before in zip(actual, expected, strict=True):
        close(y, before)
    assert calls.names.count("atrous_conv2d") == 3
    assert "native_batch_norm" not in calls.names


def test_modules_of_one_pixel_and_without_batch():
    model = with_statistics(nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU()))
    inputs = torch.randn(1, 8, 1, 1), torch.randn(8, 6, 6)
    expected = [run(model, x) for x in inputs]
    fastseg.optimize_(model, mode="infer")
    for x, y in zip(inputs, expected, strict=True):
        close(run(model, x), y)


def test_filter_and_dry_run():
    model, x, _ = model_of("basic_block")
    classes = [*map(type, model.modules())]
    seen = []

    def only_second(module, name):
        seen.append((type(module), name))
        return name == "conv2"

    report = fastseg.optimize_(model, mode="infer", filter_fn=only_second, dry_run=True)
    assert [entry.name for entry in report.swapped] == ["conv2"]
    assert ("conv1", "Conv2d", "filter_fn") in report.left
    assert {cls for cls, _ in seen} == {nn.Conv2d}
    assert [*map(type, model.modules())] == classes
    expected = run(model, x)
    fastseg.optimize_(model, mode="infer", filter_fn=only_second)
    assert type(model.conv1) is nn.Conv2d
    close(run(model, x), expected)


def test_report_is_a_table():
    report = fastseg.optimize_(nn.Sequential(nn.Conv2d(3, 8, 2)), mode="infer", dry_run=True)
    assert str(report).splitlines() == [
        "fastseg.optimize_, mode infer, dry run: 0 swapped, 1 left",
        "left  0  Conv2d  an even kernel, (2, 2)",
    ]


def test_infer_mode_says_no_to_training_and_folds_loaded_weights():
    model, x, _ = model_of("basic_block")
    other = with_statistics(BasicBlock(8, 32, dilation=2))
    fastseg.optimize_(model, mode="infer")
    with pytest.raises(RuntimeError, match="restore_"):
        model.train()
    model.eval()
    model.load_state_dict(other.state_dict())
    close(run(model, x), run(other, x))
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
    close(run(model, x), run(plain, x), 1e-5)


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
