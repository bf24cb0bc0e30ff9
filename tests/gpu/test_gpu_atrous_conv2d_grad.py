"""Weight gradients and depthwise convolution on a GPU: values, the same bits, streams, graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from fastseg._core import library
from fastseg import reference
from tests.gpu.test_gpu_atrous_conv2d import CASES, ONE, TOLERANCE, doubled, each_dtype, error
from tests.pool.pool_cases import LAYOUTS, assert_layout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
    pytest.mark.usefixtures("ieee_convolutions"),
]
ops = torch.ops.fastseg
LAST = torch.channels_last
DEPTHWISE = (  # (N, C, H, W), kernel, stride, padding, dilation
    ((8, 960, 33, 33), (3, 3), ONE, (12, 12), (12, 12)),
    ((2, 37, 40, 29), (3, 3), ONE, (6, 6), (6, 6)),  # rows begin at no multiple of 16 bytes
    ((2, 24, 41, 33), (5, 3), (2, 2), (4, 2), (2, 2)),
    ((1, 64, 7, 9), (3, 3), ONE, (18, 18), (18, 18)),  # only the centre is live
)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))


class Call(NamedTuple):
    """An op and its arguments, tensors first."""

    name: str
    tensors: tuple
    rest: tuple

    def run(self, tensors: tuple | None = None) -> torch.Tensor:
        return getattr(ops, self.name)(*(tensors or self.tensors), *self.rest)

    @property
    def expected(self) -> torch.Tensor:
        """The reference's, in float64."""
        return getattr(reference, self.name)(*map(doubled, self.tensors), *self.rest)


def randn(shape, dtype, layout=LAST):
    return torch.randn(shape, device="cuda").to(dtype, memory_format=layout)


def output_shape(shape, outputs, kernel, stride, padding, dilation):
    axes = zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    return (shape[0], outputs, *((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes))


def weight_gradient(case, dtype, layout=LAST) -> Call:
    shape, outputs, kernel, *geometry = case
    x = randn(shape, dtype, layout)
    grad = randn(output_shape(shape, outputs, kernel, *geometry), dtype, layout)
    return Call("atrous_conv2d_weight_grad", (x, grad), (kernel, *geometry, 1))


def depthwise(case, dtype, layout=LAST) -> list[Call]:
    """With its epilogue, and both gradients; as the ops that users' convolutions come to."""
    shape, kernel, *geometry = case
    channels = shape[1]
    geometry = (*geometry, channels)
    out = output_shape(shape, channels, kernel, *geometry[:3])
    x, grad, residual = (randn(s, dtype, layout) for s in (shape, out, out))
    weight = torch.randn(channels, 1, *kernel, device="cuda").to(dtype)
    vectors = torch.randn(3, channels, device="cuda")
    return [
        Call("atrous_conv2d", (x, weight, *vectors, residual), (*geometry, "leaky_relu")),
        Call("atrous_conv2d_input_grad", (grad, weight), (shape[2:], *geometry)),
        Call("atrous_conv2d_weight_grad", (x, grad), (kernel, *geometry)),
    ]


def all_calls(dtype) -> list[Call]:
    return [weight_gradient(CASES[0], dtype), *depthwise(DEPTHWISE[0], dtype)]


def test_backends_of_the_ops():
    for op, backend in (("atrous_conv2d", "Triton"), ("depthwise_conv2d", "CUDA C++")):
        names = [f"{op}{suffix}" for suffix in ("", "_input_grad", "_weight_grad")]
        assert {library.backend(name, "cuda") for name in names} == {backend}


def check(call: Call, layout, tolerance: float) -> None:
    out = call.run()
    assert out.dtype == call.tensors[0].dtype
    assert_layout(out, layout)
    assert error(out, call.expected) < tolerance, call.name


@each_dtype
@each_layout
@pytest.mark.parametrize("case", CASES, ids=str)
def test_weight_gradient(case, layout, dtype, monkeypatch):
    from fastseg.kernels.conv import weight_grad as kernels

    monkeypatch.setattr(kernels, "WORTHWHILE_SHARE", 1.0)
    check(weight_gradient(case, dtype, layout), layout, TOLERANCE[dtype])


@each_dtype
@each_layout
@pytest.mark.parametrize("case", DEPTHWISE, ids=str)
def test_depthwise(case, layout, dtype):
    for call in depthwise(case, dtype, layout):
        check(call, layout, 2e-6 if dtype == torch.float32 else TOLERANCE[dtype])


@each_dtype
def test_depthwise_ops(dtype):
    """Those of groups = C alone."""
    for call in depthwise(DEPTHWISE[1], dtype):
        *geometry, groups = (r for r in call.rest if r != "leaky_relu")
        assert groups == call.tensors[0].shape[1]
        ending = ("leaky_relu",) if call.name == "atrous_conv2d" else ()
        op = getattr(ops, call.name.replace("atrous", "depthwise"))
        assert torch.equal(op(*call.tensors, *geometry, *ending), call.run())


@each_dtype
def test_the_same_bits_every_time(dtype):
    for call in all_calls(dtype):
        first = call.run()
        for _ in range(2):
            assert torch.equal(call.run(), first), call.name


@pytest.mark.parametrize("call", range(4))
def test_nan_reaches_what_reads_it(call):
    """The NaNs of x or of the gradient, at the map's corner, and no element more."""
    case = ((2, 64, 33, 33), 32, (3, 3), ONE, (12, 12), (12, 12))
    calls = [
        weight_gradient(case, torch.float16),
        *depthwise(((2, 64, 33, 33), *case[2:]), torch.float16),
    ]
    call = calls[call]
    call.tensors[0][1, 3, 0, 1] = torch.nan
    expected = call.expected.isnan()
    assert expected.any()
    assert not expected.all()
    assert torch.equal(call.run().isnan(), expected)


def late_copies(tensors: tuple) -> tuple[tuple, Callable[[], None]]:
    """Zeros, and what fills them with the tensors' values after a while."""
    late = tuple(torch.zeros_like(t) for t in tensors)

    def fill():
        torch.cuda._sleep(20_000_000)
        for target, source in zip(late, tensors, strict=True):
            target.copy_(source)

    return late, fill


def test_ops_run_on_the_current_stream():
    """Beside a slow producer on a side stream, work on any other stream would read too early."""
    stream = torch.cuda.Stream()
    for call in all_calls(torch.bfloat16):
        expected = call.run()
        late, fill = late_copies(call.tensors)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            fill()
            out = call.run(late)
        stream.synchronize()
        assert torch.equal(out, expected), call.name


def test_ops_can_be_captured_in_a_graph():
    for call in all_calls(torch.bfloat16):
        expected = call.run()  # compiles the kernels and makes their plans
        inputs = tuple(torch.zeros_like(t) for t in call.tensors)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call.run(inputs)
        for target, source in zip(inputs, call.tensors, strict=True):
            target.copy_(source)
        graph.replay()
        assert torch.equal(out, expected), call.name


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    for call in all_calls(torch.bfloat16):
        out = call.run(tuple(t.to("cuda:1") for t in call.tensors))
        assert out.device.index == 1
        assert torch.equal(out.cpu(), call.run().cpu()), call.name
    assert torch.cuda.current_device() == 0
