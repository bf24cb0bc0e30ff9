"""Gradients of fastseg.max_unpool2d beside torch's, and what they keep."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import reference
from tests.pool.pool_cases import (
    FLOATS,
    LAYOUTS,
    PoolCase,
    assert_identical,
    finite_values,
    special_values,
)
from tests.pool.test_max_unpool2d import (
    each_case,
    each_dtype,
    each_kind,
    each_layout,
    pooled,
    torch_unpool,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")


@each_kind
@each_layout
@each_dtype
@each_case
def test_gradients_are_torchs(case, dtype, layout, kind):
    codes, indices, values = pooled(case, dtype, layout)
    grad = special_values(case.shape, dtype, layout, seed=2)
    theirs, ours = values.clone().requires_grad_(), values.clone().requires_grad_()
    torch_unpool(theirs, indices, case.shape[-2:]).backward(grad)
    positions = codes if kind == "codes" else indices
    torch.ops.fastseg.max_unpool2d(ours, positions, case.shape[-2:], *case.window[:3]).backward(
        grad
    )
    assert_identical(ours.grad, theirs.grad)


@each_case
def test_gradient_kernels_of_every_simd_level(case, simd_level):
    for dtype, layout in itertools.product(FLOATS, LAYOUTS):
        codes, indices, _ = pooled(case, dtype, layout)
        grad = special_values(case.shape, dtype, layout, seed=2)
        expected = reference.max_unpool2d_backward(grad, codes, codes.shape[-2:], *case.window)
        backward = torch.ops.fastseg.max_unpool2d_backward
        for positions in (codes, indices):
            assert_identical(backward(grad, positions, codes.shape[-2:], *case.window), expected)


@pytest.mark.parametrize(
    "case",
    [
        PoolCase((1, 3, 4, 10)),  # packed along W, or along 3 of 4 channels
        PoolCase((2, 1, 4, 6)),
        PoolCase((1, 5, 2, 8)),
        PoolCase((1, 3, 5, 7), ceil_mode=True),
        PoolCase((1, 2, 5, 6), (3, 3), (2, 2), (1, 1)),
    ],
    ids=str,
)
@each_kind
@each_layout
def test_gradcheck(case, layout, kind):
    codes, indices, _ = pooled(case, torch.float64, layout)
    positions = codes if kind == "codes" else indices
    values = finite_values(codes.shape, torch.float64, layout).requires_grad_()
    if case.stride < case.kernel_size:
        # Of windows that meet in an element every one receives its gradient, as in torch, though
        # one alone shows: only windows that do not meet have a numerical gradient.
        positions = torch.full_like(codes, 4)
        if kind == "indices":
            positions = fastseg.codes_to_indices(positions, case.shape, *case.window)

    def unpooled(v):
        size = case.shape[-2:]
        return torch.ops.fastseg.max_unpool2d(v, positions, size, *case.window[:3])

    assert torch.autograd.gradcheck(unpooled, values)
    assert torch.autograd.gradgradcheck(unpooled, values)


@each_layout
@each_kind
def test_duplicates_each_receive_the_gradient(kind, layout):
    values = torch.randn(1, 3, 2, 2).contiguous(memory_format=layout).requires_grad_()
    codes = torch.tensor([4, 3, 1, 0]).byte().view(1, 1, 2, 2).expand(1, 3, 2, 2)  # all at (1, 1)
    indices = fastseg.codes_to_indices(codes, (4, 4), 3, 1)
    assert indices.unique().tolist() == [5]
    out = fastseg.max_unpool2d(values, codes if kind == "codes" else indices, 3, 1)
    assert_identical(out[..., 1, 1], values[..., 1, 1].detach())
    grad = torch.arange(48.0).view(1, 3, 4, 4).requires_grad_()
    (received,) = torch.autograd.grad(out, values, grad, create_graph=True)
    assert_identical(received, grad[..., 1:2, 1:2].expand(1, 3, 2, 2))
    received.sum().backward()
    expected = torch.zeros(1, 3, 4, 4)
    expected[..., 1, 1] = 4
    assert_identical(grad.grad, expected)


def test_deterministic_algorithms():
    """torch's max_unpool2d refuses to run under them."""
    x = torch.randn(2, 3, 8, 10, requires_grad=True)
    torch.use_deterministic_algorithms(True)
    try:
        values, codes = fastseg.max_pool2d(x, 2)
        indices = fastseg.codes_to_indices(codes, x.shape, 2)
        with pytest.raises(RuntimeError, match="deterministic"):
            F.max_unpool2d(values, indices, 2)
        for positions in (codes, indices):
            (grad,) = torch.autograd.grad(
                fastseg.max_unpool2d(values, positions, 2).sum(), x, retain_graph=True
            )
            assert grad.sum() == math.prod(values.shape)
    finally:
        torch.use_deterministic_algorithms(False)


@each_layout
def test_the_gradient_of_2x2_windows_saves_a_quarter_of_a_byte(layout):
    x = torch.randn(2, 8, 16, 32).contiguous(memory_format=layout)
    values, codes = fastseg.max_pool2d(x, 2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        fastseg.max_unpool2d(values.requires_grad_(), codes, 2)
    (saved,) = saved
    assert 4 * saved.untyped_storage().nbytes() == codes.untyped_storage().nbytes()
