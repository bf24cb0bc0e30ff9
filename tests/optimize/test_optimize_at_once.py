"""The short way to one op: what it computes, and who else keeps it from being taken."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.autograd import profiler

import fastseg
from fastseg._core import extension
from fastseg.optimize.blocks.calls import at_once

pytestmark = pytest.mark.skipif(bool(extension.CPU_MISSING), reason="needs the compiled ops")


class Block(nn.Module):
    def __init__(self, groups=1):
        super().__init__()
        self.conv = nn.Conv2d(16, 16, 3, padding=2, dilation=2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, x):
        return self.bn(self.conv(x)).relu()


def optimised(mode="train", groups=1):
    """A block that has computed once, so that its batch norm's constants are kept, and its map."""
    block = Block(groups).eval()
    block.bn.running_mean.normal_()
    block.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 16, 12, 11).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = block(x)
        model = nn.Sequential(block)
        fastseg.optimize_(model, mode=mode)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    return model[0], x, expected


def taken(block, x, *added):
    return at_once(block.conv, block.bn, "relu", x, *added)


@pytest.mark.parametrize("groups", [1, 16])
@pytest.mark.parametrize("mode", ["train", "infer"])
@torch.no_grad()
def test_value(mode, groups):
    block, x, expected = optimised(mode, groups)
    torch.testing.assert_close(taken(block, x), expected, rtol=1e-4, atol=1e-4)
    residual = torch.randn_like(expected)
    block_without = block.bn(block.conv(x))
    torch.testing.assert_close(
        taken(block, x, residual), (block_without + residual).relu(), rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
def test_value_where_torch_is_faster():
    """Large contiguous maps of a depthwise 5x5 kernel, with AVX2; elsewhere the op is taken."""
    block = Block(16).eval()
    block.conv = nn.Conv2d(16, 16, 5, padding=2, groups=16, bias=False)
    block.bn.running_mean.normal_()
    x = torch.randn(1, 16, 96, 96)
    expected, residual = block(x), torch.randn_like(x)
    model = nn.Sequential(block)
    fastseg.optimize_(model, mode="train")
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    block = model[0]
    torch.testing.assert_close(taken(block, x), expected, rtol=1e-4, atol=1e-4)
    added = (block.bn(block.conv(x)) + residual).relu()
    torch.testing.assert_close(taken(block, x, residual), added, rtol=1e-4, atol=1e-4)


CONTEXTS = {
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "a profiler": profiler.profile,
    "a mode of functions": lambda: torch.overrides.BaseTorchFunctionMode(),
    "a mode of ops": lambda: torch.utils._python_dispatch.TorchDispatchMode(),
}


@pytest.mark.parametrize("name", CONTEXTS)
@torch.no_grad()
def test_contexts_that_take_the_long_way(name):
    block, x, _ = optimised()
    assert taken(block, x) is not None
    with CONTEXTS[name](), contextlib.suppress(NotImplementedError):
        assert taken(block, x) is None


CHANGES = {
    "a hook of the convolution": lambda b: b.conv.register_forward_pre_hook(lambda m, i: None),
    "a hook of the batch norm": lambda b: b.bn.register_forward_pre_hook(lambda m, i: None),
    "training": lambda b: b.bn.train(),
    "another kernel": lambda b: setattr(b.conv, "weight", nn.Parameter(torch.randn(16, 16, 1, 1))),
    "another eps": lambda b: setattr(b.bn, "eps", 1e-3),
    "a mean written past autograd": lambda b: b.bn.running_mean.data.add_(1),
    "a scale cut short where it lies": lambda b: setattr(b.bn.weight, "data", b.bn.weight.data[:8]),
    "one scale for all where it lies": lambda b: setattr(
        b.bn.weight, "data", b.bn.weight.data[:1].expand(16)
    ),
    "another variance": lambda b: setattr(b.bn, "running_var", torch.ones(16)),
    "double precision": lambda b: b.double(),
}


@pytest.mark.parametrize("name", CHANGES)
@torch.no_grad()
def test_changes_after_which_the_long_way_is_taken(name):
    block, x, _ = optimised()
    CHANGES[name](block)
    assert taken(block, x) is None


@torch.no_grad()
def test_inputs_that_take_the_long_way():
    block, x, expected = optimised()
    assert taken(block, x[0]) is None
    with pytest.raises(RuntimeError, match="weight must have x's dtype"):
        taken(block, x.double())
    assert taken(block, nn.Parameter(x)) is not None
    assert taken(block, x, torch.ones(16, 1, 1)) is None
    assert taken(block, x, 1.0) is None
    assert taken(block, x, expected.double()) is None

    def mapped(x):
        assert taken(block, x) is None
        return x

    torch.func.vmap(mapped)(x[None])


@pytest.mark.parametrize("stride", [(2, 2), [2, 2]], ids=["tuple", "list"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_geometry_changed_after_a_choice_was_remembered(layout, stride):
    block, x, _ = optimised()
    x = x.contiguous(memory_format=layout)
    taken(block, x)
    block.conv.stride = stride
    expected = block.bn(block.conv(x)).relu()
    got = taken(block, x)
    assert got is not None or isinstance(stride, list)
    torch.testing.assert_close(expected if got is None else got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_code_finds_children_at_once():
    """Children under any name and at any depth; nn.Module.__getattr__ takes a microsecond each."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
            self.pool = nn.AdaptiveAvgPool2d(1)

        def forward(self, x):
            return self.pool(self.inner[1](self.inner[0](x)).relu())

    x = torch.randn(1, 16, 12, 12)
    model = nn.Sequential(Nested().eval())
    expected = model(x)
    fastseg.optimize_(model, mode="train")
    source = model[0]._program.source
    assert source.count("_modules") == 5
    assert "getattr" not in source
    assert "self.pool" not in source
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    model[0].inner[0] = nn.Conv2d(16, 16, 1)
    assert torch.equal(model(x), model[0].pool(model[0].inner(x).relu()))
