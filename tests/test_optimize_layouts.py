"""Maps between channels_last, in which convolutions compute, and what others make contiguous."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastseg
from fastseg.optimize.convolve import in_channels_last, in_contiguous


class Copies(TorchDispatchMode):
    """Counts torch's copies of maps, which change a layout at a tenth of the memory's speed."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


def network() -> nn.Sequential:
    parts = []
    for channels in (3, 8, 8):
        parts += [nn.Conv2d(channels, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True)]
        parts += [nn.LeakyReLU(0.01)]
    return nn.Sequential(*parts).eval()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_instance_norms_between_convolutions(layout):
    torch.manual_seed(0)
    model, x = network(), torch.randn(2, 3, 20, 17).to(memory_format=layout)
    expected = model(x)
    fastseg.optimize_(model, mode="infer")
    with torch.no_grad(), Copies() as copies:
        out = model(x)
    torch.testing.assert_close(out, expected)
    assert copies.count == 0
    model(x).sum().backward()  # gradients go by torch's copies
    fastseg.restore_(model)
    assert type(model[1]) is nn.InstanceNorm2d


@pytest.mark.parametrize("change", [in_channels_last, in_contiguous])
@pytest.mark.parametrize(
    "make",
    {
        "contiguous": lambda x: x,
        "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
        "sliced": lambda x: x[:, 1:, ::2],
        "transposed": lambda x: x.transpose(2, 3),
        "expanded": lambda x: x[:1].expand(3, -1, -1, -1),
        "float64": lambda x: x.double(),
        "bfloat16": lambda x: x.bfloat16(),
        "empty": lambda x: x[:0],
        "one channel": lambda x: x[:, :1],
        "needs a gradient": lambda x: x.clone().requires_grad_(),
        "a vector": lambda x: x[0, 0, 0],
    }.items(),
    ids=lambda item: item[0],
)
def test_values_stay(change, make):
    x = make[1](torch.randn(2, 5, 6, 7))
    if change is in_channels_last and x.dim() != 4:
        return
    out = change(x)
    torch.testing.assert_close(out, x, rtol=0, atol=0)
    assert out.requires_grad == x.requires_grad
    if change is in_channels_last:
        assert not out.numel() or out.is_contiguous(memory_format=torch.channels_last)
