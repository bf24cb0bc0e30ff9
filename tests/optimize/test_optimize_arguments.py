"""A rewritten forward runs for the kinds of arguments that it was made for, the own for others."""

import copy

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.optimize_cases import Calls, close
from tests.zoo.other_models import with_statistics


class Block(nn.Module):
    def __init__(self, channels=32):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def chain(self, x):
        return self.relu(self.bn(self.conv(x)))


class IfTensor(Block):
    def forward(self, x, skip):
        y = self.chain(x)
        if isinstance(skip, torch.Tensor):
            y = y + skip
        elif isinstance(skip, (list, tuple)):
            y = y + sum(skip)
        return y


class IfNone(Block):
    def forward(self, x, skip):
        y = self.chain(x)
        return y if skip is None else y + skip


class IfNoneInAHelper(Block):
    def merged(self, y, skip):
        if skip is not None:
            y = y + skip
        return y

    def forward(self, x, skip):
        return self.merged(self.chain(x), skip)


class Optional(Block):
    def forward(self, x, skip=None, scale=1.0):
        y = self.chain(x) * scale
        return y if skip is None else y + skip


class OfAList(Block):
    def forward(self, x, skip):
        return self.chain(x) + skip[0] + skip[1]


class IfParameter(Block):
    def forward(self, x, skip):
        return self.chain(x) * (2 if isinstance(skip, nn.Parameter) else 3)


class Multiplied(Block):
    def forward(self, x, skip):
        skip = skip * 2
        return self.chain(x) + skip


class AddedInPlace(Block):
    def forward(self, x, skip):
        y = self.chain(x)
        y += skip
        return y


class WithSubclasses(Block):
    def forward(self, x, skip):
        return self.relu(self.bn(self.conv(x)) + skip)


class Tagged(torch.Tensor):
    """A tensor of another class."""


X = torch.linspace(-1, 1, 2 * 32 * 36).view(2, 32, 6, 6)
SKIPS = {
    "tensor": X * 2,
    "none": None,
    "list": [X, X * 2],
    "tuple": (X, X * 3),
    "number": 2.0,
    "integer": 3,
    "parameter": nn.Parameter(X * 2, requires_grad=False),
    "subclass": (X * 2).as_subclass(Tagged),
    "vector": torch.linspace(0, 1, 6),
    "scalar": torch.tensor(2.0),
    "integers": (X * 4).long(),
    "double": X.double(),
    "text": "skip",
}
BLOCKS = [
    IfTensor, IfNone, IfNoneInAHelper, Optional, OfAList, IfParameter, Multiplied, AddedInPlace,
    WithSubclasses,
]  # fmt: skip


def outcome(model, *args, **kwargs):
    with torch.no_grad():
        try:
            return model(*args, **kwargs)
        except Exception as error:
            return type(error)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("kind", SKIPS)
@pytest.mark.parametrize("block", BLOCKS)
def test_kinds(block, kind, mode):
    model, skip = with_statistics(block()), SKIPS[kind]
    ours = copy.deepcopy(model)
    report = fastseg.optimize_(ours, mode=mode)
    assert report.left == []
    calls = [((X, skip), {}), ((X,), {"skip": skip}), ((), {"x": X, "skip": skip})]
    if block is Optional:
        calls += [((X,), {}), ((X, skip, 2.0), {}), ((X,), {"scale": 3.0})]
    for args, kwargs in calls:
        expected = outcome(model, *args, **kwargs)
        actual = outcome(ours, *args, **kwargs)
        if isinstance(expected, type):
            assert actual is expected
        else:
            assert type(actual) is type(expected)
            close(actual.as_subclass(torch.Tensor), expected.as_subclass(torch.Tensor))


@pytest.mark.parametrize("block", [IfTensor, IfNone, WithSubclasses, Multiplied])
def test_tensors_are_fused(block):
    model = with_statistics(block())
    fastseg.optimize_(model, mode="infer")
    with torch.no_grad(), Calls() as calls:
        model(X, X)
    assert "atrous_conv2d" in calls.names
    assert "native_batch_norm" not in calls.names


def test_a_tensor_of_another_class_is_not_fused():
    model = with_statistics(nn.Sequential(nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.ReLU()))
    expected = model(X)
    fastseg.optimize_(model, mode="infer")
    close(model(X.as_subclass(Tagged)).as_subclass(torch.Tensor), expected)
