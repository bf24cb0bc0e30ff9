"""optimize_ on max-pooling and unpooling: byte codes where all indices are seen."""

import pytest
import torch
from blocks import SegNet
from optimize_cases import Calls, close, run
from torch import nn
from zoo import with_statistics

import fastseg


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
