"""optimize_ on forwards: which calls are fused, which graphs are not to be trusted."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastseg
from tests.optimize.blocks import ConvModule
from tests.optimize.optimize_cases import Calls, close, run
from tests.zoo.other_models import with_statistics


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
    written_before_read: "may be written to before",
    reads_twice: "read elsewhere",
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


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_slices_of_a_sequential(mode):
    layers = nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 4, 1)
    model, x = with_statistics(nn.Sequential(*layers)), torch.randn(1, 8, 9, 9)
    expected = run(model[:2], x), run(model[:3], x)
    fastseg.optimize_(model, mode=mode)
    slices = model[:2], model[:3]
    for part, y in zip(slices, expected, strict=True):
        close(run(part, x), y)
    fastseg.restore_(slices[1])
    assert type(slices[1]) is nn.Sequential
    assert torch.equal(run(slices[1], x), expected[1])


def test_a_forward_that_slices_a_sequential():
    class Encoder(Functional):
        def __init__(self):
            super().__init__(None)
            conv, bn = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
            self.features = nn.Sequential(conv, bn, nn.ReLU(), nn.MaxPool2d(2))

        def forward(self, x):
            return F.relu(self.bn(self.conv(self.features[:3](x))))

    model, x = with_statistics(Encoder()), torch.randn(1, 32, 9, 9)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode="infer")
    assert [entry.detail for entry in report.swapped] == ["conv + batch norm + relu"] * 2
    with Calls() as calls:
        close(run(model, x), expected)
    assert calls.names.count("atrous_conv2d") == 2
