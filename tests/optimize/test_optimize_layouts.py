"""Maps between channels_last, in which convolutions compute, and what others make contiguous."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastseg
from fastseg import reference
from fastseg.ops.conv.cpu_pointwise import pointwise_conv2d, suits
from fastseg.optimize.blocks.convolve import in_channels_last, in_contiguous


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


@pytest.mark.parametrize("activation", ["", "relu", "relu6", "leaky_relu", "silu", "hardswish"])
@pytest.mark.parametrize("given", ["", "bias", "scale shift", "bias scale shift residual"])
@pytest.mark.parametrize("n", [1, 3])
def test_pointwise_convolution_of_a_contiguous_map(n, given, activation):
    x, weight = torch.randn(n, 20, 16, 17), torch.randn(24, 20, 1, 1)
    vectors = {k: torch.randn(24) for k in ("bias", "scale", "shift") if k in given}
    residual = torch.randn(n, 24, 16, 17) if "residual" in given else None
    assert suits(x, weight, *vectors.values(), residual)
    out = pointwise_conv2d(x, weight, **vectors, activation=activation, residual=residual)
    expected = reference.atrous_conv2d(
        x.double(), weight.double(), *(vectors.get(k) for k in ("bias", "scale", "shift")),
        residual, (1, 1), (0, 0), (1, 1), 1, activation,
    )  # fmt: skip
    torch.testing.assert_close(out.double(), expected, rtol=2e-6, atol=2e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_pointwise_convolution_of_weights_that_change():
    x, weight, scale = torch.randn(1, 20, 16, 16), torch.randn(24, 20, 1, 1), torch.rand(24)
    for change in (lambda: None, lambda: weight.data[3].zero_(), lambda: scale.mul_(2)):
        change()
        expected = torch.nn.functional.conv2d(x, weight) * scale.view(-1, 1, 1)
        torch.testing.assert_close(pointwise_conv2d(x, weight, scale=scale), expected)


def test_pointwise_convolution_of_weights_that_are_not_finite():
    model = nn.Sequential(nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16)).eval()
    model[0].weight.data[2, 3] = torch.inf
    model[1].weight.data[2] = 0
    x = torch.randn(1, 16, 16, 16)
    expected = model(x)
    fastseg.optimize_(model, mode="infer")
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, equal_nan=True)


@pytest.mark.parametrize("changed", ["sliced", "channels_last", "few pixels", "bfloat16", "one"])
def test_what_is_no_pointwise_convolution_of_a_contiguous_map(changed):
    x, weight = torch.randn(2, 32, 16, 16), torch.randn(32, 32, 1, 1)
    other = {
        "sliced": x[:, :, ::2],
        "channels_last": x.to(memory_format=torch.channels_last),
        "few pixels": x[:, :, :2, :2].contiguous(),
        "bfloat16": x.bfloat16(),
        "one": x[:, :1].contiguous(),
    }[changed]
    assert suits(x, weight)
    assert not suits(other, weight[:, : other.shape[1]])


def test_an_optimised_model_has_it(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments[5])
        return pointwise_conv2d(*arguments)

    monkeypatch.setattr("fastseg.ops.conv.cpu_pointwise.pointwise_conv2d", counted)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 16, 1))
    model.eval()
    x = torch.randn(2, 32, 20, 20)
    expected = model(x)
    fastseg.optimize_(model, mode="infer")
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)
    assert calls == ["relu"]  # the second convolution's map is in channels_last
    torch.testing.assert_close(model(x.requires_grad_()), expected)
    assert calls == ["relu"]
