"""optimize_ on ASPP, however others write it: one op, or left as it is."""

import pytest
import torch
from blocks import ASPP
from optimize_cases import close, run
from torch import nn
from zoo import with_statistics

import fastseg


def add_one(module: nn.Module, inputs, output: torch.Tensor) -> torch.Tensor:
    return output + 1


@pytest.mark.parametrize("part", ["convs.1", "convs.3", "project", "convs.0.2"])
def test_parts_with_hooks_are_called(part):
    model, x = with_statistics(ASPP(8, 32)), torch.randn(2, 8, 9, 9)
    plain = run(model, x)
    model.get_submodule(part).register_forward_hook(add_one)
    expected = run(model, x)
    assert not torch.allclose(expected, plain, atol=0.1)
    report = fastseg.optimize_(model, mode="infer")
    assert "fastseg.aspp" not in [entry.detail for entry in report.swapped]
    close(run(model, x), expected)
