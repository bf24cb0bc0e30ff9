"""The filters and the mean field of a dense CRF on a GPU: the CPU's results, streams, graphs."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import torch

import fastseg
from fastseg._core import library
from fastseg import reference
from tests.crf.permutohedral_cases import FLOATS, LatticeCase
from tests.crf.test_lattice_mean_field import (
    COMPAT,
    HIGH,
    QUALITIES,
    assert_log_is,
    confident,
    potts,
    problem,
)
from tests.gpu.test_gpu import to_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
ops = torch.ops.fastseg
NAMES = (
    "permutohedral_filter",
    "permutohedral_filter_backward",
    "spatial_gaussian_filter",
    "lattice_mean_field",
)
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])


def filter_calls(dtype=torch.float32, channels: int = 21) -> list[tuple]:
    """(op, arguments on the CPU), of lattices with tiles of the CPU's size and of one tile."""
    calls = []
    for case in (LatticeCase(2, 5, 20011), LatticeCase(1, 3, 4001, 1.0, 2)):
        lattice = ops.permutohedral_lattice(case.features(dtype), case.refine, case.dilation)[:7]
        grad, values = torch.randn(2, case.batch, channels, case.points, dtype=dtype)
        for options in ((1, False, False), (2, False, True), (1, True, False)):
            calls.append(("permutohedral_filter", (values, *lattice, *options, 0.7)))
            calls.append(("permutohedral_filter_backward", (grad, values, *lattice, *options)))
    for size, sigma in (((190, 203), (3.0, 60.0)), ((9, 40, 50), (1.0, 2.0, 3.0))):
        values = torch.randn(2, channels, *size, dtype=dtype)
        calls.append(("spatial_gaussian_filter", (values, torch.tensor(sigma))))
        calls.append(("spatial_gaussian_filter", (values, torch.tensor(sigma), 1)))
    last = torch.randn(2, channels, 190, 203).to(dtype, memory_format=torch.channels_last)
    calls.append(("spatial_gaussian_filter", (last, torch.tensor([3.0, 2.0]))))
    return calls


def run(name: str, arguments: tuple) -> tuple:
    """The op's outputs, as a tuple."""
    out = getattr(ops, name)(*arguments)
    return out if isinstance(out, tuple) else (out,)


def check(actual: tuple, expected: tuple) -> None:
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape
        tolerance = 1e-4 if b.dtype == torch.float32 else 1e-12
        atol = tolerance * max(1.0, b.abs().max().item())
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=atol)


def mean_field_on(device: str, arguments: tuple, quality: tuple, iterations: int = 5, log=False):
    unary, kernels, mu, norms = arguments
    kernels, mu = ([t.to(device) for t in tensors] for tensors in (kernels, mu))
    unary = unary.to(device)
    return ops.lattice_mean_field(unary, kernels, mu, norms, iterations, *quality, log=log)


def assert_as_exact_as_the_cpu(q, arguments: tuple, quality: tuple, iterations: int = 5) -> None:
    """Both beside float64: how far float32 may be off depends on the terms, not on the device."""
    unary, kernels, mu, norms = arguments
    kernels, mu = ([t.double() for t in tensors] for tensors in (kernels, mu))
    exact = reference.lattice_mean_field(unary.double(), kernels, mu, norms, iterations, *quality)
    off = (mean_field_on("cpu", arguments, quality, iterations) - exact).abs().max()
    assert (q.cpu() - exact).abs().max() <= 8 * off + 1e-5


def test_the_compiled_kernels_are_loaded():
    assert {library.backend(name, "cuda") for name in NAMES} == {"CUDA C++"}


@each_dtype
@pytest.mark.parametrize("channels", [1, 2, 21, 150])
def test_filters_match_the_cpu(channels, dtype):
    for name, arguments in filter_calls(dtype, channels):
        check(run(name, to_device(arguments)), run(name, arguments))


def test_a_lattice_built_on_the_gpu():
    features, values = LatticeCase(2, 5, 20011).features(), torch.randn(2, 21, 20011)
    expected = ops.permutohedral_filter(values, *ops.permutohedral_lattice(features)[:7])
    lattice = ops.permutohedral_lattice(features.cuda())[:7]
    check((ops.permutohedral_filter(values.cuda(), *lattice),), (expected,))


@QUALITIES
@pytest.mark.parametrize("labels", [1, 2, 21, 60, 150, 400])
def test_mean_field_matches_the_cpu(labels, quality):
    arguments = problem(2, labels, (61, 83))
    q = mean_field_on("cuda", arguments, quality)
    assert_as_exact_as_the_cpu(q, arguments, quality)


@QUALITIES
@pytest.mark.parametrize("labels", [1, 2, 21, 60, 150, 400])
def test_log_q_matches_the_cpu(labels, quality):
    unary, *rest = confident(labels, (61, 83))
    expected = mean_field_on("cpu", (unary, *rest), quality, 2, log=True)
    for x in (unary, unary.contiguous(memory_format=torch.channels_last)):
        assert_log_is(mean_field_on("cuda", (x, *rest), quality, 2, log=True).cpu(), expected)


@QUALITIES
@pytest.mark.parametrize("normalization", range(4))
def test_terms_match_the_cpu(normalization, quality):
    unary, (sigma, features), _, _ = problem(2, 6, (41, 53))
    kernels = [sigma, features, features[:1, :4]]
    for mu in ([potts(1.5), torch.randn(6), torch.randn(6, 6)], [torch.randn(6, 6)] * 3):
        arguments = (unary, kernels, mu, [normalization, 3, 2])
        q = mean_field_on("cuda", arguments, quality, 3)
        assert_as_exact_as_the_cpu(q, arguments, quality, 3)


@QUALITIES
def test_layouts(quality):
    unary, *rest = problem(2, 21, (61, 83))
    last = unary.contiguous(memory_format=torch.channels_last)
    q = mean_field_on("cuda", (last, *rest), quality)
    assert q.stride() == last.stride()
    assert torch.equal(q, mean_field_on("cuda", (unary, *rest), quality))


def test_repeats_are_identical():
    for name, arguments in filter_calls():
        ready = to_device(arguments)
        first = run(name, ready)
        for _ in range(5):
            assert all(map(torch.equal, run(name, ready), first))
    for quality in (COMPAT, HIGH):
        arguments = problem(1, 21, (190, 203))
        first = mean_field_on("cuda", arguments, quality)
        for _ in range(5):
            assert torch.equal(mean_field_on("cuda", arguments, quality), first)


def test_filters_run_on_the_current_stream():
    """Beside a slow producer on a side stream, work on any other stream would read too early."""
    stream = torch.cuda.Stream()
    for name, arguments in filter_calls():
        ready = to_device(arguments)
        late = torch.zeros_like(ready[0])
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            late.copy_(ready[0])
            outputs = run(name, (late, *ready[1:]))
        stream.synchronize()
        check(outputs, run(name, arguments))


def test_mean_field_runs_on_the_current_stream():
    unary, *rest = problem(1, 21, (61, 83))
    ready, late = unary.cuda(), torch.zeros_like(unary, device="cuda")
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        late.copy_(ready)
        q = mean_field_on("cuda", (late, *rest), COMPAT)
    stream.synchronize()
    assert torch.equal(q, mean_field_on("cuda", (unary, *rest), COMPAT))


def captured(call) -> tuple:
    """The outputs of a graph of the call, replayed once they are wiped out."""
    call()  # loads the kernels
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    for out in outputs:
        out.zero_()
    graph.replay()
    torch.cuda.synchronize()
    return outputs


def test_filters_can_be_captured_in_a_graph():
    for name, arguments in filter_calls():
        ready = to_device(arguments)
        outputs = captured(lambda name=name, ready=ready: run(name, ready))
        assert all(map(torch.equal, outputs, run(name, ready)))


@pytest.mark.parametrize("quality", ["compat", "high"])
def test_a_dense_crf_can_be_captured_in_a_graph(quality):
    """And replayed on another picture, whose lattice has other sizes; numbers are the caller's."""
    unary, image = torch.rand(2, 21, 61, 83).cuda(), torch.rand(2, 3, 61, 83).cuda() * 255
    terms = [
        fastseg.PairwiseGaussian((3, 4), torch.rand(21).tolist()),
        fastseg.PairwiseBilateral(80, (13, 14, 15), torch.rand(21, 21).tolist()),
    ]
    call = partial(fastseg.dense_crf, unary, image, terms, iterations=5, quality=quality)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        q = call()
    for _ in range(2):
        graph.replay()
        assert torch.equal(q, call())
        image.div_(16)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("permutohedral_filter: slots", "permutohedral_filter(v, t[0] + 99, *t[1:])"),
        (
            "permutohedral_filter: neighbors",
            "permutohedral_filter(v, *t[:6], t[6] + 99)",
        ),
        ("spatial_gaussian_filter: sigma", "spatial_gaussian_filter(v, torch.zeros(1).cuda())"),
        (
            "lattice_mean_field: compatibility",
            "lattice_mean_field(v, [v], [torch.tensor(torch.nan).cuda()], [3], 1, 0)",
        ),
    ],
)
def test_a_bad_value_fails_the_stream_and_names_the_op(message, call):
    """In a process of its own: a device-side assert ends the CUDA context."""
    script = (
        "import fastseg, torch\n"
        "v = torch.rand(1, 3, 50).cuda()\n"
        "t = torch.ops.fastseg.permutohedral_lattice(v)[:7]\n"
        f"torch.ops.fastseg.{call}\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"fastseg::{message}" in done.stdout + done.stderr


def test_a_capture_is_refused_where_a_lattice_is_the_result():
    script = (
        "import fastseg, torch\n"
        "v = torch.rand(1, 3, 50).cuda()\n"
        "with torch.cuda.graph(torch.cuda.CUDAGraph()):\n"
        "    torch.ops.fastseg.permutohedral_lattice(v)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert "fastseg::permutohedral_lattice: the size of its result waits" in done.stderr
