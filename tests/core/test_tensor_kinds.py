"""Tensors that are not plain ones reach the ops by torch's rules: no memory is read raw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

import fastseg
from tests.core.op_samples import assert_close
from tests.core.public_calls import public_calls

pytestmark = pytest.mark.usefixtures("one_thread")
each_call = pytest.mark.parametrize("call", public_calls(), ids=str)


class Named(Tensor):
    """A subclass with torch's own __torch_function__."""


class Wrapped(Tensor):
    """A subclass whose memory is another tensor's, behind __torch_dispatch__."""

    @staticmethod
    def __new__(cls, inner: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=inner.device
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map(unwrapped, (args, kwargs or {}))
        wrap = lambda t: Wrapped(t) if isinstance(t, Tensor) else t  # noqa: E731
        return tree_map(wrap, function(*args, **kwargs))


def unwrapped(t):
    return t.inner if isinstance(t, Wrapped) else t


def leaked(t: Tensor) -> Tensor:
    """A tensor of a torch.func transform that is over."""
    kept = []

    def keep(x):
        kept.append(x)
        return x.sum()

    grad(keep)(t)
    return kept[0]


KINDS = {
    "subclass": lambda t: t.as_subclass(Named),
    "wrapper": Wrapped,
    "of a transform that is over": leaked,
    "zeros without memory": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "inference": lambda t: t.clone(),
}


@pytest.mark.parametrize("kind", KINDS)
@each_call
def test_kinds(call, kind):
    for name, t in call.tensors.items():
        if kind == "zeros without memory" and name == "sigma":
            continue  # bandwidths are positive
        if kind == "wrapper" and call.name == "PermutohedralLattice":
            continue  # reads how many vertices there are
        if not t.is_floating_point() and kind != "subclass":
            continue
        with torch.inference_mode(kind == "inference"):
            value = KINDS[kind](t)
        plain = torch.zeros(t.shape) if kind == "zeros without memory" else t
        with torch.no_grad():
            outputs, expected = call(**{name: value}), call(**{name: plain})
        for actual, e in zip(outputs, expected, strict=True):
            if isinstance(e, Tensor):
                actual = unwrapped(actual).as_subclass(Tensor)
                assert_close(actual, e, 1e-4, f"{name} {kind}")


@each_call
def test_inference_mode(call):
    """Nothing that is kept there is in the way of a gradient afterwards."""
    leaves = {n: t.clone() for n, t in call.tensors.items()}
    with torch.inference_mode():
        inside = call(**leaves)
    floats = {
        n: t.clone().requires_grad_()
        for n, t in leaves.items()
        if t.is_floating_point() and n not in call.constants
    }
    outside = call(**{**leaves, **floats})
    for a, b in zip(inside, outside, strict=True):
        if isinstance(b, Tensor):
            assert_close(a, b.detach(), 1e-5, str(call))
            if b.requires_grad:
                b.sum().backward(retain_graph=True)


def test_gradients_of_subclasses():
    x, weight = torch.randn(1, 4, 6, 6), torch.randn(3, 4, 3, 3)

    def gradients(x, weight):
        y = fastseg.max_pool2d(fastseg.atrous_conv2d(x, weight, activation="silu"), 2)[0]
        return torch.autograd.grad(y.square().sum(), (x, weight))

    expected = gradients(x.clone().requires_grad_(), weight.clone().requires_grad_())
    for kind in (Named, Wrapped):
        leaves = [
            (t.as_subclass(kind) if kind is Named else kind(t)).requires_grad_()
            for t in (x, weight)
        ]
        for actual, e in zip(gradients(*leaves), expected, strict=True):
            torch.testing.assert_close(unwrapped(actual).as_subclass(Tensor), e)


def test_views_of_leaves():
    """Gradients through slices, transposes and expands of what autograd accumulates into."""
    parameters = torch.randn(8, 8, 3, 3, requires_grad=True)
    vectors = torch.randn(8, 3, requires_grad=True)
    x = torch.randn(2, 4, 9, 9)

    def loss(convolve):
        weight, column = parameters[::2, 1:5].transpose(0, 1), vectors[::2, 1]
        y = convolve(x, weight, column)
        return (y * y).mean() + y.sum()

    def theirs(x, weight, column):
        y = torch.nn.functional.conv2d(x, weight, column, padding=1)
        return torch.relu(y * column.view(-1, 1, 1))

    def ours(x, weight, column):
        return fastseg.atrous_conv2d(x, weight, column, scale=column, activation="relu")

    leaves = (parameters, vectors)
    expected = torch.autograd.grad(loss(theirs), leaves)
    for a, b in zip(torch.autograd.grad(loss(ours), leaves), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_undefined_gradients():
    """Of an output that is no number, of one that nobody used, of a product's second derivative."""
    x = torch.randn(1, 2, 4, 4, requires_grad=True)
    values, codes = fastseg.max_pool2d(x, 2)
    assert values.requires_grad
    assert not codes.requires_grad
    weight = torch.randn(2, 2, 3, 3, requires_grad=True)
    y = fastseg.atrous_conv2d(x, weight)
    (by_x,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    by_x, by_weight = torch.autograd.grad(by_x.sum(), (x, weight), allow_unused=True)
    assert by_x is None  # y is linear in it
    expected = torch.autograd.grad(
        torch.autograd.grad(
            torch.nn.functional.conv2d(x, weight, padding=1).sum(), x, create_graph=True
        )[0].sum(),
        weight,
    )[0]
    torch.testing.assert_close(by_weight, expected)
