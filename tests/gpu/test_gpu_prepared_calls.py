"""Prepared calls on a GPU: the results of Triton's launches, without Triton."""

from __future__ import annotations

import importlib
import threading

import pytest
import torch

import fastseg
from fastseg._core import prepared_calls
from fastseg import reference
from tests.gpu.test_gpu_atrous_conv2d import CASES, TOLERANCE, each_dtype, error, inputs
from tests.pool.pool_cases import LAYOUTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
    pytest.mark.skipif(prepared_calls.launcher is None, reason="the library was not built"),
    pytest.mark.usefixtures("ieee_convolutions"),
]
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
RATES = (1, 6, 12, 18)


def no_triton(monkeypatch):
    """From now on Triton launches nothing."""

    def run(*_, **options):
        raise AssertionError("launched by Triton")

    monkeypatch.setattr(importlib.import_module("triton.runtime.jit").JITFunction, "run", run)


def convolution(case, dtype, layout):
    """A call of a convolution."""
    x, weight, *vectors, (stride, padding, dilation, _) = inputs(case, dtype)
    x = x.contiguous(memory_format=layout)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "activation": "relu"}
    bias, scale, shift = vectors

    def run():
        with torch.no_grad():
            return fastseg.atrous_conv2d(x, weight, bias, scale=scale, shift=shift, **options)

    return run, x


@each_dtype
@each_layout
@pytest.mark.parametrize("case", CASES)
def test_convolution(case, layout, dtype, monkeypatch):
    run, x = convolution(case, dtype, layout)
    first = run()
    no_triton(monkeypatch)
    second = run()
    assert second.is_contiguous(memory_format=layout)
    assert torch.equal(first, second)
    x.mul_(2)
    assert not torch.equal(run(), second)


def pyramid(dtype, layout, pool_first=False):
    """The tensors of an ASPP, as `fastseg.aspp` takes them."""

    def branch(channels, kernel, dilation, outputs=64):
        weight = torch.randn(outputs, channels, kernel, kernel, device="cuda")
        weight = weight / weight[0].numel() ** 0.5
        vectors = torch.randn(2, outputs, device="cuda")
        return fastseg.ASPPBranch(weight.to(dtype), *vectors, dilation)

    x = torch.randn(2, 256, 33, 33, device="cuda").to(dtype).contiguous(memory_format=layout)
    branches = [branch(256, 1 if rate == 1 else 3, rate) for rate in RATES]
    return x, branches, branch(5 * 64, 1, 1), {"pool": branch(256, 1, 1), "pool_first": pool_first}


def doubled(value):
    if isinstance(value, fastseg.ASPPBranch):
        return fastseg.ASPPBranch(*map(doubled, value))
    if isinstance(value, list):
        return [doubled(v) for v in value]
    return value.double() if isinstance(value, torch.Tensor) else value


@each_dtype
@each_layout
@pytest.mark.parametrize("pool_first", [False, True])
def test_aspp(pool_first, layout, dtype, monkeypatch):
    *given, options = pyramid(dtype, layout, pool_first)
    with torch.no_grad():
        first = fastseg.aspp(*given, **options)
        no_triton(monkeypatch)
        second = fastseg.aspp(*given, **options)
        options = {name: doubled(value) for name, value in options.items()}
        expected = fastseg.aspp(*map(doubled, given), **options)
    assert second.is_contiguous(memory_format=layout)
    assert torch.equal(first, second)
    assert error(second, expected) < 4 * TOLERANCE[dtype]  # mean, branches and p are rounded too


def test_cuda_graphs(monkeypatch):
    from fastseg.kernels.conv import plan_cache as plans

    run, x = convolution(((1, 256, 27, 31), 64, *CASES[0][2:]), torch.float16, LAYOUTS[1])
    run()
    graph = torch.cuda.CUDAGraph()
    with monkeypatch.context() as patch:
        no_triton(patch)
        with torch.cuda.graph(graph):
            out = run()
    plans.cache.plans.clear()
    prepared_calls.forget()
    torch.full((1 << 22,), -1, dtype=torch.int32, device="cuda")  # over memory that was given up
    x.copy_(torch.randn_like(x))
    graph.replay()
    assert torch.equal(out, run())


def test_streams_and_threads():
    """Each thread has a stream of its own, and no context before its first call."""
    run, _ = convolution(CASES[0], torch.bfloat16, LAYOUTS[1])
    expected, found = run(), []
    torch.cuda.synchronize()

    def work():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            found.extend(run() for _ in range(20))
            stream.synchronize()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 80
    assert all(torch.equal(y, expected) for y in found)


def test_memory_that_begins_elsewhere():
    """Recorded for itself: TMA addresses multiples of 16 bytes only."""
    run, x = convolution(CASES[1], torch.float16, LAYOUTS[1])
    expected = run()
    room = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")
    moved = room[1:].as_strided(x.shape, x.stride(), 1)
    moved.copy_(x)
    weight, *vectors = inputs(CASES[1], torch.float16)[1:5]
    geometry = (*CASES[1][3:], 1)
    for _ in range(2):
        out = torch.ops.fastseg.atrous_conv2d(moved, weight, *vectors, None, *geometry, "relu")
        same = (moved, weight, *vectors)
        wanted = reference.atrous_conv2d(*(t.double() for t in same), None, *geometry, "relu")
        assert error(out, wanted) < TOLERANCE[torch.float16]
    assert torch.equal(run(), expected)
