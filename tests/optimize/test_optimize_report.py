"""optimize_ says what it leaves and why, also before it does anything."""

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.blocks import BasicBlock
from tests.optimize.optimize_cases import close, run
from tests.zoo.other_models import with_statistics


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


class BatchNorms(nn.Module):
    """Five batch norms that no convolution takes in, and one that is not called."""

    def __init__(self):
        super().__init__()
        self.conv, self.even = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 2)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.first, self.after_even, self.after_up, self.read_twice, self.unused, self.unwanted = (
            nn.BatchNorm2d(8) for _ in range(6)
        )
        self.unwanted_conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        x = self.first(x)
        x = self.after_up(self.up(self.after_even(self.even(x))))
        y = self.conv(x)
        return self.unwanted(self.unwanted_conv(self.read_twice(y) + y))


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_batch_norms_that_are_left(mode):
    model, x = with_statistics(BatchNorms()), torch.randn(1, 8, 9, 9)
    expected = run(model, x)
    report = fastseg.optimize_(model, mode=mode, filter_fn=lambda m, name: name != "unwanted_conv")
    close(run(model, x), expected)
    assert {e.name: e.detail for e in report.left if e.module == "BatchNorm2d"} == {
        "first": "follows no convolution",
        "after_even": "follows a convolution that is left",
        "after_up": "follows a transposed convolution",
        "read_twice": "what it normalises is read elsewhere too",
        "unused": "is not called",
        "unwanted": "follows a convolution that is left",
    }


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
