"""Every public function and module under autocast, beside torch's ops in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastseg
from fastseg.reference import ACTIVATION
from tests.conv.aspp_of_torch import ASPP as TorchASPP
from tests.conv.aspp_of_torch import unsettle

LOWER = (torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Case(NamedTuple):
    """A call and the composition of torch's ops that it replaces, of the same tensors.

    Attributes:
        ours: the call.
        theirs: the composition.
        shapes: of the tensors, (N, C, H, W) or (C,).
        mixed: the tensor that may have any dtype, by its number; the others are float32.
        residual: the number of the tensor that is added last.
    """

    ours: Callable[..., Tensor | tuple[Tensor, ...]]
    theirs: Callable[..., Tensor | tuple[Tensor, ...]]
    shapes: tuple[tuple[int, ...], ...]
    mixed: int = 0
    residual: int | None = None


def batch_norm(y, scale, shift):
    """As a module in evaluation, with statistics that change nothing."""
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return F.batch_norm(y, zeros, ones, scale, shift, eps=0.0)


def conv_case(activation=None, residual=False, bias=False, mixed=0) -> Case:
    """Convolution, batch norm, perhaps a residual, an activation."""

    def ours(x, weight, scale, shift, b, r):
        return fastseg.atrous_conv2d(
            x,
            weight,
            b if bias else None,
            scale=scale,
            shift=shift,
            activation=activation,
            residual=r if residual else None,
        )

    def theirs(x, weight, scale, shift, b, r):
        y = batch_norm(F.conv2d(x, weight, b if bias else None, padding=1), scale, shift)
        return ACTIVATION[activation or ""](y + r if residual else y)

    shapes = (2, 6, 9, 8), (5, 6, 3, 3), (5,), (5,), (5,), (2, 5, 9, 8)
    return Case(ours, theirs, shapes, mixed, residual=5)


def separable_case(mixed: int) -> Case:
    def ours(x, depth, point, shift, r):
        return fastseg.separable_atrous_conv2d(
            x,
            depth,
            point,
            dilation=2,
            depthwise_activation="relu",
            bias=shift,
            residual=r,
            activation="relu6",
        )

    def theirs(x, depth, point, shift, r):
        y = F.relu(F.conv2d(x, depth, padding=2, dilation=2, groups=6))
        return F.relu6(F.conv2d(y, point, shift) + r)

    shapes = (2, 6, 9, 8), (6, 1, 3, 3), (5, 6, 1, 1), (5,), (2, 5, 9, 8)
    return Case(ours, theirs, shapes, mixed, residual=4)


def aspp_case(pool: bool) -> Case:
    def ours(x, first, second, pooled, project, scale, shift):
        branches = [fastseg.ASPPBranch(first), fastseg.ASPPBranch(second, dilation=3)]
        if not pool:
            project = project[:, :8]
        return fastseg.aspp(
            x,
            branches,
            fastseg.ASPPBranch(project, scale, shift),
            pool=fastseg.ASPPBranch(pooled) if pool else None,
        )

    def theirs(x, first, second, pooled, project, scale, shift):
        maps = [F.relu(F.conv2d(x, first)), F.relu(F.conv2d(x, second, padding=3, dilation=3))]
        if pool:
            p = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, 1), pooled))
            maps.append(F.interpolate(p, x.shape[2:], mode="bilinear"))
        else:
            project = project[:, :8]
        return F.relu(batch_norm(F.conv2d(torch.cat(maps, 1), project), scale, shift))

    shapes = (2, 6, 9, 8), (4, 6, 1, 1), (4, 6, 3, 3), (4, 6, 1, 1), (5, 12, 1, 1), (5,), (5,)
    return Case(ours, theirs, shapes)


def sum_case() -> Case:
    def ours(x, first, second, shift):
        branches = [
            fastseg.ASPPBranch(w, shift=shift, dilation=d) for w, d in ((first, 1), (second, 2))
        ]
        return fastseg.aspp(x, branches, activation=None)

    def theirs(x, first, second, shift):
        y = F.conv2d(x, first, shift, padding=1)
        return y + F.conv2d(x, second, shift, padding=2, dilation=2)

    return Case(ours, theirs, ((2, 6, 9, 8), (4, 6, 3, 3), (4, 6, 3, 3), (4,)))


def unpool_case(codes: bool) -> Case:
    def ours(x):
        if codes:
            values, positions = fastseg.max_pool2d(x, 2)
        else:
            values, positions = F.max_pool2d(x, 2, return_indices=True)
        return fastseg.max_unpool2d(values, positions, 2)

    def theirs(x):
        return F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)

    return Case(ours, theirs, ((2, 6, 8, 8),))


def pool_of_torch(x, scale, shift):
    return F.max_pool2d(F.relu(batch_norm(x, scale, shift)), 2)


CASES = {
    "atrous_conv2d": conv_case(),
    "atrous_conv2d, bias": conv_case("relu", bias=True),
    "atrous_conv2d, mixed weight": conv_case("silu", mixed=1),
    "atrous_conv2d, mixed bias": conv_case("hardswish", bias=True, mixed=4),
    "atrous_conv2d, residual": conv_case("leaky_relu", residual=True),
    "atrous_conv2d, mixed residual": conv_case("relu6", residual=True, mixed=5),
    "atrous_conv2d, mixed residual, silu": conv_case("silu", residual=True, mixed=5),
    "separable_atrous_conv2d": separable_case(0),
    "separable_atrous_conv2d, mixed residual": separable_case(4),
    "aspp": aspp_case(pool=True),
    "aspp without pooling": aspp_case(pool=False),
    "aspp, sum": sum_case(),
    "max_pool2d": Case(
        lambda x: fastseg.max_pool2d(x, 2)[0], lambda x: F.max_pool2d(x, 2), ((2, 6, 8, 8),)
    ),
    "max_unpool2d, codes": unpool_case(codes=True),
    "max_unpool2d, indices": unpool_case(codes=False),
    "batch_norm_relu_max_pool2d": Case(
        lambda x, *vectors: fastseg.batch_norm_relu_max_pool2d(x, *vectors, 2)[0],
        pool_of_torch,
        ((2, 6, 8, 8), (6,), (6,)),
    ),
}


def run(function, tensors, lower, gradient: bool):
    """The output and the gradients of floating-point tensors, under autocast."""
    tensors = [t.clone().requires_grad_(gradient) for t in tensors]
    with torch.autocast("cpu", lower):
        y = function(*tensors)
    if not gradient:
        return y.detach(), []
    loss = (y.double() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum()
    return y.detach(), torch.autograd.grad(loss, tensors, allow_unused=True)


def assert_close(actual: Tensor, expected: Tensor, lower: torch.dtype, but: float = 0.0) -> None:
    """To within a few roundings of the lower dtype, beside the largest element.

    Args:
        actual: ours.
        expected: torch's.
        lower: the dtype of autocast.
        but: the share of elements that may be others: of gradients, where rounding decides on which
            side of an activation's kink a value is.
    """
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    bound = 16 * torch.finfo(lower).eps * max(expected.abs().max().item(), 1e-3)
    assert ((actual.double() - expected.double()).abs() > bound).double().mean() <= but


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("lower", LOWER, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_functions(name, dtype, lower, gradient):
    case = CASES[name]
    tensors = [torch.randn(shape) for shape in case.shapes]
    tensors[case.mixed] = tensors[case.mixed].to(dtype)
    if dtype == torch.float64 and case.mixed != case.residual:
        tensors = [t.double() for t in tensors]  # torch's convolution refuses a mixture
    expected, gradients = run(case.theirs, tensors, lower, gradient)
    actual, own = run(case.ours, tensors, lower, gradient)
    assert_close(actual, expected, lower)
    for a, b in zip(own, gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b, lower, but=0.02)


class ResidualOfTorch(nn.Sequential):
    """Convolution and batch norm, a residual, ReLU."""

    def forward(self, x, residual):
        return super().forward(x).add(residual).relu()


class SumOfTorch(nn.Module):
    """DeepLab v2's ASPP."""

    def __init__(self):
        super().__init__()
        self.c0 = nn.Conv2d(6, 5, 3, padding=2, dilation=2)
        self.c1 = nn.Conv2d(6, 5, 3, padding=4, dilation=4)

    def forward(self, x):
        return self.c0(x) + self.c1(x)


def separable_of_torch():
    depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False)
    both = nn.Sequential(depthwise, nn.Conv2d(6, 5, 1, bias=False))
    return nn.Sequential(both, nn.BatchNorm2d(5), nn.ReLU())


def conv_of_torch():
    return nn.Conv2d(6, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)


class PoolOfTorch(nn.BatchNorm2d):
    """Batch norm, ReLU, max-pooling."""

    def forward(self, x):
        return F.max_pool2d(super().forward(x).relu(), 2)


MODULES = {
    "AtrousConvBNAct": (
        lambda: fastseg.nn.AtrousConvBNAct(6, 5),
        lambda: nn.Sequential(*conv_of_torch(), nn.ReLU()),
    ),
    "AtrousConvBNAct with a residual": (
        lambda: fastseg.nn.AtrousConvBNAct(6, 5),
        lambda: ResidualOfTorch(*conv_of_torch()),
    ),
    "SeparableAtrousConvBNAct": (
        lambda: fastseg.nn.SeparableAtrousConvBNAct(6, 5),
        separable_of_torch,
    ),
    "ASPP": (lambda: fastseg.nn.ASPP(6, (2, 3), 8, dropout=0.0), lambda: TorchASPP(6, (2, 3), 8)),
    "ASPPSum": (lambda: fastseg.nn.ASPPSum(6, 5, (2, 4)), SumOfTorch),
    "BatchNormReLUMaxPool2d": (
        lambda: fastseg.nn.BatchNormReLUMaxPool2d(6),
        lambda: PoolOfTorch(6),
    ),
    "MaxPool2d": (lambda: fastseg.nn.MaxPool2d(2), lambda: nn.MaxPool2d(2)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lower", LOWER, ids=str)
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_modules(name, dtype, lower, training):
    ours, theirs = (make() for make in MODULES[name])
    ours.load_state_dict(unsettle(theirs).state_dict())
    ours.train(training)
    theirs.train(training)
    tensors = [torch.randn(4, 6, 10, 8).to(dtype)]
    if "residual" in name:
        tensors = [tensors[0].float(), torch.randn(4, 5, 10, 8).to(dtype)]
    for gradient in (False, True):
        with torch.set_grad_enabled(gradient), torch.autocast("cpu", lower):
            actual, expected = ours(*tensors), theirs(*tensors)
        if isinstance(actual, tuple):  # values and codes
            actual = actual[0]
        assert_close(actual.detach(), expected.detach(), lower)


def test_unpooling_module():
    values, positions = F.max_pool2d(torch.randn(1, 3, 8, 8).bfloat16(), 2, return_indices=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual, expected = (n.MaxUnpool2d(2)(values, positions) for n in (fastseg.nn, nn))
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)
