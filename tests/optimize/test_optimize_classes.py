"""Forwards that ask for the classes of their modules, and the classes that optimize_ makes."""

import gc
import weakref

import pytest
import torch
from torch import nn

import fastseg
from fastseg.optimize.blocks.swap import Swapped
from fastseg.optimize.trace.class_questions import ASKED


def conv(dilation=2):
    return nn.Conv2d(8, 8, 3, padding=dilation, dilation=dilation)


class Asks(nn.Module):
    """A block with modules of each kind that is swapped, the classes of which are to be asked."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(8)
        self.block = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU())
        self.blocks = nn.ModuleList([conv(), nn.Sequential(conv(), nn.ReLU())])
        self.instance = nn.InstanceNorm2d(8)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def run(self, x, plain):
        for module in (self.conv, self.norm, self.block, *self.blocks, self.instance):
            x = module(x) if plain(module) else x * 0
        pooled, indices = self.pool(x)
        known = plain(self.pool) and plain(self.unpool)
        return self.unpool(pooled, indices) if known else x * 0


class ByType(Asks):
    def forward(self, x):
        return self.run(x, lambda module: type(module).__module__.startswith("torch.nn.modules."))


class ByName(Asks):
    def forward(self, x):
        return self.run(x, self.is_plain)

    def is_plain(self, module):
        return hasattr(nn, module.__class__.__name__)


class ByProperty(Asks):
    CLASSES = (nn.Conv2d, nn.BatchNorm2d, nn.Sequential, nn.InstanceNorm2d, nn.MaxPool2d,
               nn.MaxUnpool2d)  # fmt: skip

    def forward(self, x):
        return self.run(x, self.knows)

    @property
    def knows(self):
        return lambda module: type(module) in self.CLASSES


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("cls", [ByType, ByName, ByProperty])
def test_classes_that_a_forward_asks_for_stay(cls, mode):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(conv(), nn.BatchNorm2d(8), nn.ReLU()), cls()).eval()
    x = torch.rand(1, 8, 16, 16)
    with torch.no_grad():
        expected = model(x)
        report = fastseg.optimize_(model, mode=mode)
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert expected.abs().max() > 0
    assert isinstance(model[0], Swapped)
    assert {(e.name, e.detail) for e in report.left} >= {("1.conv", ASKED), ("1.blocks.0", ASKED)}


class Names(nn.Module):
    """A block that asks for its own class, a tensor's method of that name, or nothing of a child's.

    Its own class is a subclass of what it was, which calls and class attributes go on with.
    """

    FACTOR = 2

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(8)

    def forward(self, x):
        y = self.norm(self.conv(x.type(torch.float32)))
        return y * type(self).FACTOR * self.__class__.FACTOR


def test_other_questions_leave_nothing():
    model = Names().eval()
    report = fastseg.optimize_(model, mode="infer")
    assert isinstance(model.conv, Swapped)
    assert ASKED not in str(report)


@pytest.mark.parametrize("own_forward", [False, True])
def test_the_classes_that_were_made_go_with_the_last_module(own_forward):
    class Block(nn.Sequential):
        pass

    class OwnForward(nn.Sequential):
        def forward(self, x):
            return self[2](self[1](self[0](x)))

    cls = OwnForward if own_forward else Block
    model = cls(conv(), nn.BatchNorm2d(8), nn.ReLU()).eval()
    fastseg.optimize_(model)
    assert type(model) is not cls
    made, own = weakref.ref(type(model)), weakref.ref(cls)
    fastseg.restore_(model)
    assert type(model) is cls
    del model, cls, Block, OwnForward
    gc.collect()
    assert made() is None
    assert own() is None
