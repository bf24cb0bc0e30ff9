"""The gradients of fastseg.atrous_conv2d: the two gradient ops, and autograd through all three."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import fastseg
from fastseg import reference
from fastseg.ops.conv.cpu_costs import WEIGHT_GRADIENT_CHANNELS
from tests.conv.conv_cases import (
    ACTIVATION_NAMES,
    CASES,
    IN_BLOCKS,
    ConvCase,
    assert_close,
    double,
    needs_kernel,
    operands,
)
from tests.pool.pool_cases import FLOATS, LAYOUTS, assert_identical, assert_layout, in_layout

ops = torch.ops.fastseg
pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
SOME = (
    ConvCase((2, 19, 11, 10), 18),
    ConvCase((1, 18, 33, 20), 20, dilation=(6, 6)),
    ConvCase((2, 21, 9, 9), 35, (1, 1)),
    ConvCase((2, 17, 20, 13), 17, dilation=(6, 6), groups=17),
    ConvCase((1, 5, 14, 11), 4, (3, 5), stride=(2, 2)),
)
SMALL = (
    ConvCase((2, 4, 7, 8), 6, dilation=(2, 2)),
    ConvCase((2, 4, 6, 9), 4, (3, 5), dilation=(2, 1), stride=(2, 2), padding=(1, 2), groups=2),
    ConvCase((1, 4, 5, 5), 4, dilation=(3, 3), groups=4),
    ConvCase((1, 3, 4, 5), 5, (1, 1)),
)
each_of_some_and_blocks = pytest.mark.parametrize("case", [*SOME, IN_BLOCKS], ids=str)
each_of_some = pytest.mark.parametrize("case", SOME, ids=str)
each_small = pytest.mark.parametrize("case", SMALL, ids=str)


def input_grad(grad, weight, case):
    return ops.atrous_conv2d_input_grad(grad, weight, case.shape[2:], *case.geometry)


def weight_grad(x, grad, case):
    return ops.atrous_conv2d_weight_grad(x, grad, case.kernel, *case.geometry)


def expected_grads(x, weight, grad, case):
    """By autograd of torch's convolution in float64."""
    x, weight = x.double().requires_grad_(), weight.double().requires_grad_()
    y = torch.nn.functional.conv2d(x, weight, None, *case.geometry)
    return torch.autograd.grad(y, (x, weight), grad.double())


@each_layout
@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case, dtype, layout, simd_level):
    x, weight = case.tensors(dtype, layout)
    grad = torch.randn(case.out_shape).to(dtype).contiguous(memory_format=layout)
    expected = expected_grads(x, weight, grad, case)
    results = input_grad(grad, weight, case), weight_grad(x, grad, case)
    for actual, e in zip(results, expected, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, e)
    if math.prod(case.out_shape[2:]) > 1:  # a gradient of one pixel has no layout
        assert_layout(results[0], layout)


@each_layout
def test_maps_of_every_size(layout, simd_level):
    for rate, size in itertools.product((1, 2), range(1, 41)):
        case = ConvCase((3, 5, size, 41 - size), 6, dilation=(rate, rate))
        x, weight = case.tensors(torch.float32, layout)
        grad = torch.randn(case.out_shape).contiguous(memory_format=layout)
        expected = expected_grads(x, weight, grad, case)
        assert_close(input_grad(grad, weight, case), expected[0])
        assert_close(weight_grad(x, grad, case), expected[1])


@pytest.mark.parametrize(
    "kind", ["sliced", "sliced channels_last", "transposed", "channels first in memory"]
)
@each_of_some
def test_strides(case, kind, simd_level):
    x, weight = case.tensors(torch.float32)
    grad = torch.randn(case.out_shape)
    expected = expected_grads(x, weight, grad, case)
    a, b, c = (in_layout(t, kind) for t in (x, weight, grad))
    assert_close(input_grad(c, b, case), expected[0])
    assert_close(weight_grad(a, c, case), expected[1])
    ones = torch.ones(()).expand(case.out_shape)  # the gradient of a sum
    expected = expected_grads(x, weight, ones, case)
    assert_close(input_grad(ones, weight, case), expected[0])
    assert_close(weight_grad(x, ones, case), expected[1])


@each_layout
@each_of_some_and_blocks
def test_what_is_not_finite_reaches_what_reads_it(case, layout, simd_level):
    for value, place in itertools.product((math.nan, math.inf), ((0, 0), (-1, 2), (3, -1))):
        x, weight = case.tensors(torch.float32, layout)
        grad = torch.randn(case.out_shape).contiguous(memory_format=layout)
        channel = case.out_channels // 2
        grad[(-1, channel, *place)] = value
        indicator = torch.zeros(case.out_shape)
        indicator[(-1, channel, *place)] = 1
        reads, read = expected_grads(torch.ones_like(x), torch.ones_like(weight), indicator, case)
        assert torch.equal(~input_grad(grad, weight, case).isfinite(), reads > 0)
        actual = ~weight_grad(x, grad, case).isfinite()
        if case.shape[1] >= WEIGHT_GRADIENT_CHANNELS:
            assert torch.equal(actual, read > 0)
        else:  # a product with columns, and torch's, multiply NaN by the padding, too
            assert actual[read > 0].all()


@needs_kernel("atrous_conv2d_input_grad", "atrous_conv2d_weight_grad")
@each_layout
@each_of_some_and_blocks
def test_deterministic_for_any_number_of_threads(case, layout, simd_level):
    x, weight = case.tensors(torch.float32, layout)
    grad = torch.randn(case.out_shape).contiguous(memory_format=layout)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append((input_grad(grad, weight, case), weight_grad(x, grad, case)))
    for a, b in results[1:]:
        assert_identical(a, results[0][0])
        assert_identical(b, results[0][1])


def test_a_batch_sums_in_float32():
    """A sum in 16 bits stops at 256 in bfloat16."""
    x, grad = torch.ones(4, 1, 32, 32).bfloat16(), torch.ones(4, 1, 32, 32).bfloat16()
    case = ConvCase((4, 1, 32, 32), 1, (1, 1))
    assert weight_grad(x, grad, case).item() == 4096


# Through the public function.


def leaves(case, dtype, layout=LAYOUTS[0]):
    x, weight = case.tensors(dtype, layout)
    return [t.requires_grad_() for t in (x, weight, *operands(case, dtype).values())]


def function(case, activation=None):
    def apply(x, weight, bias, scale, shift, residual):
        return fastseg.atrous_conv2d(
            x,
            weight,
            bias,
            scale=scale,
            shift=shift,
            residual=residual,
            activation=activation,
            **case.options,
        )

    return apply


@pytest.mark.parametrize("activation", ACTIVATION_NAMES, ids=str)
def test_gradcheck_of_the_activations(activation):
    tensors = leaves(SMALL[0], torch.float64)
    apply = function(SMALL[0], activation)
    assert gradcheck(apply, tensors, fast_mode=True)
    assert gradgradcheck(apply, tensors, fast_mode=True)


@pytest.mark.parametrize("case", SMALL[1:], ids=str)
def test_gradcheck_of_the_geometries(case):
    tensors = leaves(case, torch.float64)
    assert gradcheck(function(case), tensors, fast_mode=True)
    assert gradgradcheck(function(case), tensors, fast_mode=True)


@pytest.mark.parametrize("activation", ["", "relu", "silu", "hardswish"], ids=repr)
def test_gradcheck_of_the_op(activation):
    """Where silu and hardswish are part of the op, it computes what goes into them once more."""
    case = SMALL[1]

    def apply(*tensors):
        return ops.atrous_conv2d(*tensors, *case.geometry, activation)

    tensors = leaves(case, torch.float64)
    assert gradcheck(apply, tensors, fast_mode=True)
    assert gradgradcheck(apply, tensors, fast_mode=True)


@each_small
def test_gradcheck_of_the_gradient_ops(case):
    x, weight = (t.requires_grad_() for t in case.tensors())
    grad = torch.randn(case.out_shape, dtype=torch.float64).requires_grad_()
    for apply, tensors in (
        (lambda g, w: input_grad(g, w, case), (grad, weight)),
        (lambda x, g: weight_grad(x, g, case), (x, grad)),
    ):
        assert gradcheck(apply, tensors, fast_mode=True)
        assert gradgradcheck(apply, tensors, fast_mode=True)


@each_layout
@pytest.mark.parametrize("activation", ACTIVATION_NAMES, ids=str)
@each_of_some
def test_gradients_are_the_references(case, activation, layout, simd_level):
    tensors = leaves(case, torch.float32, layout)
    y = function(case, activation)(*tensors)
    wide = [double(t.detach()).requires_grad_() for t in tensors]
    expected = reference.atrous_conv2d(*wide, *case.geometry, activation or "")
    grad = torch.randn(case.out_shape)
    actual = torch.autograd.grad(y, tensors, grad)
    for a, e in zip(actual, torch.autograd.grad(expected, wide, grad.double()), strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("number", range(6))
def test_each_operand_alone(number):
    """Each needs a gradient alone, and each is the only one beside x and weight."""
    case = SMALL[0]
    tensors = [t.detach() for t in leaves(case, torch.float64)]
    everything = [t.clone().requires_grad_() for t in tensors]
    function(case, "relu")(*everything).square().sum().backward()
    tensors[number] = tensors[number].clone().requires_grad_()
    function(case, "relu")(*tensors).square().sum().backward()
    torch.testing.assert_close(tensors[number].grad, everything[number].grad)
    if number >= 2:
        given = [t if i in (0, 1, number) else None for i, t in enumerate(tensors)]
        assert gradcheck(
            lambda t: function(case)(*given[:number], t, *given[number + 1 :]),
            (tensors[number],),
            fast_mode=True,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_gradients(dtype):
    """Each its operand's, summed in float32."""
    case = ConvCase((4, 2, 32, 32), 2, (1, 1))
    x, weight = (t.requires_grad_() for t in case.tensors(dtype))
    vectors = {k: torch.ones(2, requires_grad=True) for k in ("bias", "scale", "shift")}
    y = fastseg.atrous_conv2d(x, weight, **vectors, **case.options)
    y.sum().backward()
    assert x.grad.dtype == weight.grad.dtype == dtype
    assert vectors["shift"].grad.tolist() == vectors["bias"].grad.tolist() == [4096, 4096]
    expected = x.double().sum((0, 2, 3)) @ weight.double()[..., 0, 0].T + 4096
    assert vectors["scale"].grad.dtype == torch.float32
    torch.testing.assert_close(vectors["scale"].grad, expected.float(), rtol=0.01, atol=0.5)


def test_scales_of_zero_still_learn():
    """dscale is not found by dividing by scale."""
    case = SMALL[0]
    tensors = [t.detach() for t in leaves(case, torch.float64)]
    tensors[3] = torch.zeros(case.out_channels, dtype=torch.float64).requires_grad_()
    function(case)(*tensors).sum().backward()
    tensors[3].data.fill_(1)
    tensors[4], tensors[5] = None, None
    expected = function(case)(*tensors).sum((0, 2, 3))
    torch.testing.assert_close(tensors[3].grad, expected.detach())


def test_a_network_learns():
    """Every parameter of an encoder and a classifier moves, and the loss falls."""
    weights = [torch.randn(8, 3, 3, 3) / 5, torch.randn(8, 1, 3, 3) / 3, torch.randn(2, 8, 1, 1)]
    weights = [w.requires_grad_() for w in weights]
    x, target = torch.randn(2, 3, 12, 13), torch.randint(0, 2, (2, 12, 13))
    optimizer, losses = torch.optim.SGD(weights, lr=0.3), []
    for _ in range(10):
        y = fastseg.atrous_conv2d(x, weights[0], dilation=2, activation="silu")
        y = fastseg.atrous_conv2d(y, weights[1], dilation=6, groups=8, residual=y)
        loss = torch.nn.functional.cross_entropy(fastseg.atrous_conv2d(y, weights[2]), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(w.grad.abs().sum() > 0 for w in weights)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]
