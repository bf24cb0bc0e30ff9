"""optimize_ says what it leaves and why, also before it does anything."""

import pytest
import torch
from blocks import BasicBlock
from optimize_cases import close, run
from torch import nn
from zoo import with_statistics

import fastseg


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


def test_filter_and_dry_run():
    model = with_statistics(BasicBlock(8, 32, dilation=2))
    x = torch.randn(2, 8, 19, 14)
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
