"""Modules of an optimised model, called by the keywords that their own classes take."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastseg
from fastseg.optimize.blocks.swap import Swapped
from tests.optimize.optimize_cases import close
from tests.optimize.test_optimize_same_padding import Conv2dSame


class Block(nn.Module):
    """A block that calls all its children by keyword; ``name`` is that of its convolution."""

    def __init__(self, conv: nn.Module, name: str):
        super().__init__()
        self.conv, self.name = conv, name
        self.norm = nn.InstanceNorm2d(32)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x):
        x = self.norm(input=self.conv(**{self.name: x}))
        values, indices = self.pool(input=x)
        return self.unpool(input=values, indices=indices)


CONVOLUTIONS = {
    "torch's": (lambda: nn.Conv2d(32, 32, 3, padding=1), "input"),
    "timm's": (lambda: Conv2dSame(32, 32, 3), "x"),
}


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
@torch.no_grad()
def test_keywords_are_those_of_the_class(name, mode):
    make, keyword = CONVOLUTIONS[name]
    model, x = Block(make(), keyword).eval(), torch.randn(1, 32, 12, 10)
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode=mode)
    assert isinstance(ours.conv, Swapped)
    # Where indices go past a convolution that asks for the map's size is unknown.
    assert isinstance(ours.pool, Swapped) is (name == "torch's")
    assert isinstance(ours.norm, Swapped) is (mode == "infer")
    close(ours(x), model(x), 1e-4)
    close(ours.conv(**{keyword: x}), model.conv(x), 1e-4)
    close(ours.norm(input=x), model.norm(x), 1e-4)
    for wrong in ({"maps": x}, {keyword: x, "maps": x}, {}):
        with pytest.raises(TypeError):
            ours.conv(**wrong)
    with pytest.raises(TypeError):
        ours.conv(x, **{keyword: x})
