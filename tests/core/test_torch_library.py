"""The ops under torch's tracing: opcheck, compile, export, fake tensors, autocast, dispatch."""

from __future__ import annotations

import io

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.export import Dim, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing._internal.two_tensor import TwoTensor

import fastseg
from fastseg._core import library
from tests.pool.pool_cases import LAYOUTS, assert_identical

ops = torch.ops.fastseg
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))
OTHER = ((3, 3), (2, 2), (1, 1), (1, 1))
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))


def samples(layout):
    """(op, arguments): several of every op."""

    def leaf(*shape, dtype=torch.float32):
        x = torch.randn(shape, dtype=dtype)
        return (x.contiguous(memory_format=layout) if x.dim() == 4 else x).requires_grad_()

    x, grad, plane = leaf(2, 5, 6, 8), leaf(2, 5, 3, 4), leaf(2, 5, 6, 8)
    codes, other = ops.max_pool2d(x, 2)[1], ops.max_pool2d(x, 3, 2, 1)[1]
    indices = fastseg.codes_to_indices(codes, (6, 8), 2)
    packed_dim = -1 if layout == LAYOUTS[0] else -3
    packed = ops.pack_codes(codes, packed_dim)
    scale, shift = leaf(5), leaf(5)
    return [
        ("max_pool2d", (x, (2, 2))),
        ("max_pool2d", (leaf(5, 7, 9, dtype=torch.float64), *OTHER, True)),
        ("max_pool2d", (x.detach().half(), (3, 2), (1, 2))),
        ("batch_norm_relu_max_pool2d", (x, scale, shift, (2, 2))),
        ("batch_norm_relu_max_pool2d", (x.detach().bfloat16(), scale, shift.detach(), *OTHER)),
        ("max_unpool2d", (grad, codes, (7, 8), (2, 2))),
        ("max_unpool2d", (grad, indices, (6, 8), (2, 2))),
        ("max_unpool2d", (grad, other, (6, 8), *OTHER[:3])),
        ("max_pool2d_backward", (grad, codes, (6, 8), *WINDOW)),
        ("max_pool2d_backward", (grad, other, (6, 8), *OTHER)),
        ("max_pool2d_backward", (grad, packed, (6, 8), *WINDOW, packed_dim)),
        ("max_unpool2d_backward", (plane, codes, (3, 4), *WINDOW)),
        ("max_unpool2d_backward", (plane, indices, (3, 4), *WINDOW)),
        ("max_unpool2d_backward", (plane, packed, (3, 4), *WINDOW, packed_dim)),
        ("codes_to_indices", (codes, (6, 8), (2, 2))),
        ("codes_to_indices", (other[0], (6, 8), *OTHER)),
        ("indices_to_codes", (indices, (6, 8), (2, 2))),
        ("image_layout", (x.detach(), True)),
        ("image_layout", (x.detach(), False)),
        ("pack_codes", (codes, -1)),
        ("pack_codes", (codes, -3)),
        ("pack_codes", (codes[0], -1)),
    ]


OPCHECKED_ELSEWHERE = {  # in the tests of their own
    "aspp",
    "atrous_conv2d",
    "atrous_conv2d_input_grad",
    "atrous_conv2d_weight_grad",
    "confusion_matrix",
    "bilateral_filter",
    "dense_conv2d_weight_grad",
    "dense_energy",
    "depthwise_conv2d",
    "depthwise_conv2d_input_grad",
    "depthwise_conv2d_weight_grad",
    "distance_transform",
    "exact_gaussian_blocks",
    "exact_gaussian_filter",
    "exact_gaussian_filter_backward",
    "im2col_conv2d",
    "im2col_conv2d_input_grad",
    "im2col_conv2d_weight_grad",
    "lattice_mean_field",
    "mean_field",
    "mean_field_backward",
    "permutohedral_filter",
    "permutohedral_filter_backward",
    "permutohedral_lattice",
    "pixel_adaptive_refinement",
    "pixel_adaptive_refinement_backward",
    "spatial_gaussian_filter",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
    "upsample_softmax_sums",
    "upsample_softmax_sums_backward",
    "winograd_branches",
    "winograd_conv2d",
    "winograd_conv2d_weight",
    "upsample_argmax",
    "upsample_argmax_confidence",
    "upsample_confusion_matrix",
}


def test_every_op_has_samples():
    sampled = {name for name, _ in samples(LAYOUTS[0])}
    assert sampled | OPCHECKED_ELSEWHERE == set(library.NAMES)


@each_layout
@pytest.mark.parametrize("number", range(22))
def test_opcheck(number, layout):
    name, arguments = samples(layout)[number]
    torch.library.opcheck(getattr(ops, name).default, arguments)


# One chain through every public function.


def chain(x, scale, shift):
    values, codes = fastseg.max_pool2d(x, 2)
    other, other_codes = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)
    indices = fastseg.codes_to_indices(other_codes, x.shape, 2)
    y = fastseg.max_unpool2d(values, codes, 2, output_size=x.shape[-2:])
    y = y + fastseg.max_unpool2d(other, indices, 2, output_size=x.shape)
    return y, codes, fastseg.indices_to_codes(indices, x.shape, 2)


def inputs(n, h, w, layout=LAYOUTS[0]):
    x = torch.randn(n, 5, h, w).contiguous(memory_format=layout)
    return [x.requires_grad_(), torch.rand(5).requires_grad_(), torch.rand(5).requires_grad_()]


def assert_same_results_and_gradients(actual, expected, arguments):
    results = []
    for function in (actual, expected):
        y, *positions = function(*arguments)
        results.append([y, *positions, *torch.autograd.grad(y.square().sum(), arguments)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert a.stride() == b.stride()


@each_layout
def test_compile(layout):
    compiled = torch.compile(chain, fullgraph=True, backend="aot_eager")
    assert_same_results_and_gradients(compiled, chain, inputs(2, 8, 10, layout))


def test_compile_with_dynamic_shapes():
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(chain, fullgraph=True, dynamic=True, backend=graphs)
    for size in ((2, 8, 10), (3, 7, 12), (2, 6, 11)):
        assert_same_results_and_gradients(compiled, chain, inputs(*size))
    assert graphs.frame_count == 1


def test_compile_with_inductor():
    def block(x):
        values, codes = fastseg.max_pool2d(x * 2, 2)
        return fastseg.max_unpool2d(values + 1, codes, 2, output_size=x.shape), codes

    compiled = torch.compile(block, fullgraph=True)
    assert_same_results_and_gradients(compiled, block, inputs(2, 7, 10)[:1])


def test_compile_modules():
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), fastseg.nn.BatchNormReLUMaxPool2d(4)
    ).eval()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 3, 9, 9)
    for a, b in zip(compiled(x), module(x), strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_code_refuses_bad_positions():
    def unpool(values, positions):
        return fastseg.max_unpool2d(values, positions, 2) * 2

    compiled = torch.compile(unpool, fullgraph=True)
    values = torch.randn(1, 2, 3, 4)
    for dtype, bad in ((torch.uint8, 4), (torch.int64, -1), (torch.int64, 48)):
        positions = torch.zeros(values.shape, dtype=dtype)
        assert_identical(compiled(values, positions), unpool(values, positions))
        positions[0, 1, 2, 3] = bad
        with pytest.raises(RuntimeError, match=r"max_unpool2d: indices hold a .* lies outside"):
            compiled(values, positions)


class Chain(torch.nn.Module):
    forward = staticmethod(chain)


@pytest.mark.parametrize("dim", [Dim.AUTO, Dim.DYNAMIC], ids=str)
def test_export_with_dynamic_shapes(dim):
    arguments = [t.detach() for t in inputs(2, 8, 10)]
    dynamic = ({0: dim, 2: dim, 3: dim}, None, None)
    saved = io.BytesIO()
    torch.export.save(export(Chain(), tuple(arguments), dynamic_shapes=dynamic), saved)
    saved.seek(0)
    exported = torch.export.load(saved).module()
    for size in ((2, 8, 10), (1, 9, 7), (5, 4, 13)):
        arguments[0] = torch.randn(size[0], 5, *size[1:])
        for a, b in zip(exported(*arguments), chain(*arguments), strict=True):
            assert_identical(a, b)


def test_export_of_a_named_range():
    class Pool(torch.nn.Module):
        def forward(self, x):
            values, codes = fastseg.max_pool2d(x, 2)
            return fastseg.max_unpool2d(values, codes, 2, output_size=x.shape[-2:])

    height, width = Dim("height", min=4, max=500), Dim("width", min=4, max=500)
    exported = export(Pool(), (torch.randn(1, 3, 8, 10),), dynamic_shapes=({2: height, 3: width},))
    x = torch.randn(1, 3, 13, 5)
    assert_identical(exported.module()(x), Pool()(x))


# What the short cut past the autograd layer must leave alone.


@each_layout
def test_fake_tensors_have_the_real_layout(layout):
    for size in ((2, 8, 10), (1, 3, 3), (3, 7, 9)):
        arguments = [t.detach() for t in inputs(*size, layout)]
        with FakeTensorMode() as mode:
            fakes = chain(*map(mode.from_tensor, arguments))
        for fake, real in zip(fakes, chain(*arguments), strict=True):
            assert (fake.shape, fake.dtype) == (real.shape, real.dtype)
            significant = [d for d, n in enumerate(real.shape) if n > 1]
            assert [fake.stride(d) for d in significant] == [real.stride(d) for d in significant]


def test_meta_tensors():
    values, codes = fastseg.max_pool2d(torch.empty(2, 3, 9, 8, device="meta"), 2)
    assert values.device.type == codes.device.type == "meta"
    assert values.shape == codes.shape == (2, 3, 4, 4)
    assert fastseg.max_unpool2d(values, codes, 2).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode):
    arguments = [t.detach() for t in inputs(2, 8, 10)]
    graph = make_fx(chain, tracing_mode=tracing_mode)(*arguments)
    called = [str(n.target) for n in graph.graph.nodes if "fastseg" in str(n.target)]
    assert called == [
        "fastseg.max_pool2d.default",
        "fastseg.batch_norm_relu_max_pool2d.default",
        "fastseg.codes_to_indices.default",
        "fastseg.max_unpool2d.default",
        "fastseg.max_unpool2d.default",
        "fastseg.indices_to_codes.default",
    ]
    for a, b in zip(graph(*arguments), chain(*arguments), strict=True):
        assert_identical(a, b)


def test_tensor_subclasses():
    class Named(torch.Tensor):
        pass

    x, scale, shift = (t.detach() for t in inputs(2, 8, 10))
    for y, expected in zip(
        chain(x.as_subclass(Named), scale, shift), chain(x, scale, shift), strict=True
    ):
        assert type(y) is Named
        assert_identical(y.as_subclass(torch.Tensor), expected)
    two = TwoTensor(x, x + 1)
    for y, a, b in zip(
        chain(two, scale, shift), chain(x, scale, shift), chain(x + 1, scale, shift), strict=True
    ):
        assert type(y) is TwoTensor
        assert_identical(y.a, a)
        assert_identical(y.b, b)


def test_torch_function_modes_see_the_calls():
    seen = []

    class Mode(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with Mode():
        fastseg.max_pool2d(torch.randn(1, 1, 4, 4), 2)
    assert any("max_pool2d" in name for name in seen)


@pytest.mark.parametrize("needs_grad", [False, True])
def test_autocast_changes_no_value(needs_grad):
    """Nothing is rounded; unpooling is in float32, as torch's is."""
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x, scale, shift = inputs(1, 6, 8)
        x = x.detach().to(dtype).requires_grad_(needs_grad)
        expected = chain(x, scale, shift)
        with torch.autocast("cpu", torch.bfloat16):
            actual = chain(x, scale, shift)
        assert actual[0].dtype == torch.promote_types(dtype, torch.float32)
        for a, b in zip(actual, expected, strict=True):
            assert_identical(a.detach().to(b.dtype), b.detach())
        if needs_grad:
            actual[0].sum().backward()
            assert x.grad.dtype == dtype
