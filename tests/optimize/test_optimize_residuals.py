"""A residual that a block adds in place keeps the dtype and the shape, as torch's additions do."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from torch import nn

import fastseg
from tests.optimize.optimize_cases import Calls, close
from tests.zoo.other_models import with_statistics


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)


class Operator(Block):
    def forward(self, x, residual):
        out = self.bn(self.conv(x))
        out += residual
        return out.relu()


class Method(Block):
    def forward(self, x, residual):
        return self.conv(x).add_(residual)


class OutOfPlace(Block):
    def forward(self, x, residual):
        return (residual + self.bn(self.conv(x))).relu()


def outcome(model, *arguments):
    try:
        return model(*arguments)
    except RuntimeError as error:
        return str(error)


X = torch.linspace(-1, 1, 2 * 32 * 8 * 6).view(2, 32, 8, 6).sin()
RESIDUALS = {
    "the same": X.cos(),
    "float64": X.double(),
    "bfloat16": X.bfloat16(),
    "int64": X.long(),
    "complex": X.to(torch.complex64),
    "a number": 2.0,
    "a channel": X[:1, :, :1, :1],
    "a fifth dimension": X[None],
}


@pytest.mark.parametrize("autocast", [False, True], ids=["", "autocast"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("block", [Operator, Method, OutOfPlace])
def test_dtypes_and_shapes(block, mode, gradients, autocast):
    model = with_statistics(block())
    ours = copy.deepcopy(model)
    fastseg.optimize_(ours, mode=mode)
    lower = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    with torch.set_grad_enabled(gradients), lower:
        for residual in RESIDUALS.values():
            expected, actual = outcome(model, X, residual), outcome(ours, X, residual)
            if isinstance(expected, str):
                assert actual == expected
            else:
                assert actual.dtype == expected.dtype
                close(actual, expected, 0.05 if autocast else 1e-4)


@pytest.mark.parametrize("mode", ["train", "infer"])
@pytest.mark.parametrize("block", [Operator, Method])
@torch.no_grad()
def test_a_residual_like_the_output_is_added_by_the_op(block, mode):
    ours = with_statistics(block())
    fastseg.optimize_(ours, mode=mode)
    for lower in (None, torch.bfloat16):
        with torch.autocast("cpu", lower, enabled=lower is not None), Calls() as calls:
            ours(X, X if lower is None else X.to(lower))
        assert "atrous_conv2d" in calls.names
        assert "add_" not in calls.names
