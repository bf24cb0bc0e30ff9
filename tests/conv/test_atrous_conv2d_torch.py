"""The convolutions under torch: opcheck, compile, export, vmap, autocast."""

from __future__ import annotations

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim, export
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx

import fastseg
from tests.conv.conv_cases import ConvCase, expected_conv2d, operands
from tests.pool.pool_cases import LAYOUTS, assert_identical, assert_layout

ops = torch.ops.fastseg
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
CASE = ConvCase((2, 4, 9, 8), 6, dilation=(2, 2))
GROUPED = ConvCase((2, 4, 9, 8), 6, (3, 5), (1, 2), (2, 1), (1, 3), groups=2)
DEPTHWISE = ConvCase((2, 4, 9, 8), 4, dilation=(6, 6), groups=4)


def leaves(case, dtype=torch.float32, layout=LAYOUTS[0]):
    """x, weight, bias, scale, shift and residual."""
    x, weight = case.tensors(dtype, layout)
    return [t.requires_grad_() for t in (x, weight, *operands(case, dtype).values())]


@each_layout
@pytest.mark.parametrize("activation", ["", "relu", "silu"], ids=repr)
@pytest.mark.parametrize("case", [CASE, GROUPED, DEPTHWISE], ids=str)
def test_opcheck(case, activation, layout):
    tensors = leaves(case, layout=layout)
    torch.library.opcheck(
        ops.atrous_conv2d.default, (*tensors, *case.geometry, activation), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_opcheck_of_x_and_weight_alone(dtype):
    x, weight = CASE.tensors(dtype)
    for tensors in ((x, weight.requires_grad_()), (x, weight)):
        arguments = (*tensors, None, None, None, None, *CASE.geometry, "relu6")
        torch.library.opcheck(ops.atrous_conv2d.default, arguments)


@each_layout
@pytest.mark.parametrize("case", [CASE, GROUPED, DEPTHWISE], ids=str)
def test_opcheck_of_the_gradients(case, layout):
    x, weight = (t.requires_grad_() for t in case.tensors(torch.float32, layout))
    grad = torch.randn(case.out_shape).contiguous(memory_format=layout).requires_grad_()
    for op, arguments in (
        (ops.atrous_conv2d_input_grad, (grad, weight, case.shape[2:])),
        (ops.atrous_conv2d_weight_grad, (x, grad, case.kernel)),
    ):
        torch.library.opcheck(op.default, (*arguments, *case.geometry), rtol=1e-4, atol=1e-4)


# A residual block, with a 1x1 convolution and a depthwise one.


def block(x, weight, point, depth, scale, shift):
    y = fastseg.atrous_conv2d(x, weight, dilation=2, scale=scale, shift=shift, activation="relu")
    y = fastseg.atrous_conv2d(y, depth, dilation=3, groups=depth.shape[0], activation="silu")
    return fastseg.atrous_conv2d(y, point, residual=x, activation="leaky_relu")


def inputs(n, h, w, layout=LAYOUTS[0]):
    x = torch.randn(n, 5, h, w).contiguous(memory_format=layout)
    weights = torch.randn(6, 5, 3, 3), torch.randn(5, 6, 1, 1), torch.randn(6, 1, 3, 3)
    return [t.requires_grad_() for t in (x, *weights, torch.randn(6), torch.randn(6))]


def assert_same_results_and_gradients(actual, expected, arguments):
    results = []
    for function in (actual, expected):
        y = function(*arguments)
        results.append([y, *torch.autograd.grad(y.square().sum(), arguments)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert results[0][0].stride() == results[1][0].stride()


@each_layout
def test_compile(layout):
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert_same_results_and_gradients(compiled, block, inputs(2, 8, 10, layout))


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=graphs)
    for size in ((2, 8, 10), (3, 7, 12), (2, 6, 11)):
        assert_same_results_and_gradients(compiled, block, inputs(*size))
    assert graphs.frame_count == 1


def test_compile_with_inductor():
    def function(x, weight):
        return fastseg.atrous_conv2d(x * 2, weight, activation="hardswish") + 1

    compiled = torch.compile(function, fullgraph=True)
    assert_same_results_and_gradients(compiled, function, inputs(2, 7, 10)[:2])


@pytest.mark.parametrize("dim", [Dim.AUTO, Dim.DYNAMIC], ids=str)
def test_export_with_dynamic_shapes(dim):
    class Block(torch.nn.Module):
        forward = staticmethod(block)

    arguments = [t.detach() for t in inputs(2, 8, 10)]
    dynamic = ({0: dim, 2: dim, 3: dim}, None, None, None, None, None)
    saved = io.BytesIO()
    torch.export.save(export(Block(), tuple(arguments), dynamic_shapes=dynamic), saved)
    saved.seek(0)
    exported = torch.export.load(saved).module()
    for size in ((2, 8, 10), (1, 9, 7), (5, 4, 13)):
        arguments[0] = torch.randn(size[0], 5, *size[1:])
        assert_identical(exported(*arguments), block(*arguments))


@each_layout
def test_fake_tensors_have_the_real_layout(layout):
    for case in (CASE, GROUPED, DEPTHWISE, ConvCase((1, 3, 1, 7), 2)):
        x, weight = case.tensors(torch.bfloat16, layout)
        real = fastseg.atrous_conv2d(x, weight, **case.options)
        with FakeTensorMode() as mode:
            fake = fastseg.atrous_conv2d(*map(mode.from_tensor, (x, weight)), **case.options)
        assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
        significant = [d for d, n in enumerate(real.shape) if n > 1]
        assert [fake.stride(d) for d in significant] == [real.stride(d) for d in significant]
    meta = fastseg.atrous_conv2d(x.to("meta"), weight.to("meta"))
    assert meta.shape == real.shape
    assert meta.device.type == "meta"


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode):
    arguments = [t.detach() for t in inputs(2, 8, 10)]
    graph = make_fx(block, tracing_mode=tracing_mode)(*arguments)
    called = [str(n.target) for n in graph.graph.nodes if "fastseg" in str(n.target)]
    assert called == ["fastseg.atrous_conv2d.default"] * 3
    assert_identical(graph(*arguments), block(*arguments))


# vmap and the transforms on it.


@pytest.mark.parametrize(
    "in_dims",
    [
        (0, None, None, None, None, 1),
        (2, None, None, None, None, None),
        (None, None, None, None, None, 0),
        (1, 0, None, None, None, 3),
        (None, 2, 0, None, 1, None),
        (None, None, None, 0, None, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("case", [CASE, DEPTHWISE], ids=str)
def test_vmap(case, in_dims):
    single = [t.detach() for t in leaves(case)]
    batched = [
        t if d is None else torch.stack([t, 2 * t + 1, -t], d)
        for t, d in zip(single, in_dims, strict=True)
    ]

    def function(x, weight, bias, scale, shift, residual):
        return fastseg.atrous_conv2d(
            x,
            weight,
            bias,
            scale=scale,
            shift=shift,
            residual=residual,
            activation="relu",
            **case.options,
        )

    for i, y in enumerate(vmap(function, in_dims)(*batched)):
        arguments = [
            t if d is None else t.select(d, i) for t, d in zip(batched, in_dims, strict=True)
        ]
        torch.testing.assert_close(y, function(*arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [None, "relu6", "silu"], ids=str)
def test_a_batch_of_gradients(activation):
    """Autograd's own vmap, over the backward pass: a Jacobian's rows at once."""
    tensors = leaves(CASE, torch.float64)
    x, weight, bias, scale, shift, residual = tensors
    y = fastseg.atrous_conv2d(
        x,
        weight,
        bias,
        scale=scale,
        shift=shift,
        residual=residual,
        activation=activation,
        **CASE.options,
    )
    grads = torch.randn(3, *CASE.out_shape, dtype=torch.float64)
    rows = torch.autograd.grad(y, tensors, grads, is_grads_batched=True, retain_graph=True)
    for i, g in enumerate(grads):
        expected = torch.autograd.grad(y, tensors, g, retain_graph=True)
        for row, e in zip(rows, expected, strict=True):
            torch.testing.assert_close(row[i], e)


def test_vmap_of_the_gradient_ops():
    x, weight = CASE.tensors()
    grads = torch.randn(3, *CASE.out_shape, dtype=torch.float64)
    size, kernel = CASE.shape[2:], CASE.kernel
    by_input = vmap(
        lambda g: ops.atrous_conv2d_input_grad(g, weight, size, *CASE.geometry), in_dims=0
    )(grads)
    by_weight = vmap(
        lambda g: ops.atrous_conv2d_weight_grad(x, g, kernel, *CASE.geometry), in_dims=0
    )(grads)
    for i, g in enumerate(grads):
        expected = ops.atrous_conv2d_input_grad(g, weight, size, *CASE.geometry)
        torch.testing.assert_close(by_input[i], expected)
        expected = ops.atrous_conv2d_weight_grad(x, g, kernel, *CASE.geometry)
        torch.testing.assert_close(by_weight[i], expected)


def test_forward_mode_is_refused():
    x, weight = CASE.tensors()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode"):
        fastseg.atrous_conv2d(forward_ad.make_dual(x, x), weight, **CASE.options)


# Autocast.


@pytest.mark.parametrize("needs_grad", [False, True])
def test_autocast(needs_grad):
    """x and weight as torch casts a convolution's; the vectors and the residual keep their bits."""
    tensors = [t.detach().requires_grad_(needs_grad) for t in leaves(CASE)]
    x, weight, bias, scale, shift, residual = tensors
    vectors = {"bias": bias, "scale": scale, "shift": shift}
    with torch.autocast("cpu", torch.bfloat16):
        y = fastseg.atrous_conv2d(
            x, weight, **vectors, residual=residual, **CASE.options, activation="relu"
        )
    assert y.dtype == torch.float32  # torch adds a float32 residual to sums in bfloat16
    rounded = [t.bfloat16() for t in (x, weight)]
    expected = expected_conv2d(*rounded, CASE, **vectors)  # of vectors that were not rounded
    before = y.detach().where(y > 0, 0)
    after = (expected[0].detach().bfloat16() + residual.detach()).relu()
    torch.testing.assert_close(before, after, rtol=2e-2, atol=2e-2)
    if needs_grad:
        y.float().square().sum().backward()
        assert all(t.grad.dtype == torch.float32 for t in tensors)


def test_autocast_leaves_float64_alone():
    x, weight = CASE.tensors()
    with torch.autocast("cpu", torch.bfloat16):
        y = fastseg.atrous_conv2d(x, weight, **CASE.options)
    assert_identical(y, fastseg.atrous_conv2d(x, weight, **CASE.options))


@each_layout
def test_autocast_under_compile(layout):
    def function(*arguments):
        with torch.autocast("cpu", torch.bfloat16):
            return block(*arguments)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    arguments = inputs(2, 8, 10, layout)
    y, expected = compiled(*arguments), function(*arguments)
    assert y.dtype == torch.float32  # x is the last residual
    assert_layout(y, layout)
    assert_identical(y.detach(), expected.detach())
