"""The CUDA ops on a GPU: the references' results, and what only a device has."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg._core import extension, library
from fastseg import reference
from fastseg._core.permutohedral import PermutohedralTensors
from tests.crf.permutohedral_cases import CASES as LATTICES
from tests.crf.permutohedral_cases import LatticeCase, assert_format, assert_same_lattice
from tests.pool.pool_cases import (
    CASES,
    FLOATS,
    LAYOUTS,
    PoolCase,
    assert_identical,
    finite_values,
    special_values,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
ops = torch.ops.fastseg
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_case = pytest.mark.parametrize("case", CASES, ids=str)
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))


def calls(case: PoolCase, dtype, layout) -> list[tuple]:
    """Every op that a pooling leads to: (op, arguments on the CPU, the reference's result)."""
    x = special_values(case.shape, dtype, layout)
    grad = finite_values(case.shape, dtype, layout, seed=1)
    values, codes = reference.max_pool2d(grad, *case.window, case.ceil_mode)
    channels = torch.arange(case.shape[1])
    scale, shift = 2.0 ** (channels % 3 - 1), channels % 3 / 4 - 0.25
    size, pooled_size = case.shape[-2:], codes.shape[-2:]
    indices = reference.codes_to_indices(codes, size, *case.window)
    forms = [(codes, 0), (indices, 0)]
    if case.window == WINDOW and not case.ceil_mode:
        packed_dim = -1 if layout == torch.contiguous_format else -3
        forms.append((reference.pack_codes(codes, packed_dim), packed_dim))
    found = [
        ("max_pool2d", (x, *case.window, case.ceil_mode)),
        ("batch_norm_relu_max_pool2d", (x, scale, shift, *case.window, case.ceil_mode)),
    ]
    for form, packed_dim in forms:
        found.append(("max_unpool2d_backward", (grad, form, pooled_size, *case.window, packed_dim)))
        if form.dtype == torch.uint8:
            found.append(("max_pool2d_backward", (values, form, size, *case.window, packed_dim)))
        if packed_dim != 0:
            found.append(("pack_codes", (codes, packed_dim)))
    if case.dilation == (1, 1):
        found.append(("max_unpool2d", (values, codes, size, *case.window[:3])))
        if all(s >= k for k, s in zip(case.kernel_size, case.stride, strict=True)):
            found.append(("max_unpool2d", (values, indices, size, *case.window[:3])))
    return [(name, args, getattr(reference, name)(*args)) for name, args in found]


def to_device(arguments: tuple, device: str = "cuda") -> tuple:
    return tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments)


def run(name: str, arguments: tuple) -> tuple:
    """The op's outputs, as a tuple."""
    out = getattr(ops, name)(*arguments)
    return out if isinstance(out, tuple) else (out,)


def check(outputs: tuple, expected) -> None:
    expected = expected if isinstance(expected, tuple) else (expected,)
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_identical(actual.cpu(), wanted)


def test_the_compiled_kernels_are_loaded():
    assert extension.CUDA_MISSING is None
    assert library.backend("max_pool2d", "cuda") == "CUDA C++"


@each_case
@each_layout
@each_dtype
def test_ops_match_the_references(case, layout, dtype):
    for name, arguments, expected in calls(case, dtype, layout):
        check(run(name, to_device(arguments)), expected)


@each_layout
@each_dtype
def test_segnet_sizes_match_torch(dtype, layout):
    for channels, height, width in ((64, 360, 480), (128, 180, 240), (256, 90, 120), (512, 45, 60)):
        x = torch.randn(1, channels, height, width, device="cuda").to(dtype)
        x = x.contiguous(memory_format=layout)
        values, codes = fastseg.max_pool2d(x, 2)
        expected, indices = F.max_pool2d(x, 2, return_indices=True)
        assert_identical(values, expected)
        assert_identical(fastseg.codes_to_indices(codes, x.shape, 2), indices)
        unpooled = F.max_unpool2d(values, indices, 2, output_size=(height, width))
        for positions in (codes, indices):
            out = fastseg.max_unpool2d(values, positions, 2, output_size=(height, width))
            assert_identical(out, unpooled)


@each_layout
def test_gradients_match_torch(layout):
    x = torch.randn(2, 8, 12, 16, device="cuda").contiguous(memory_format=layout)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    values, codes = fastseg.max_pool2d(ours, 2)
    fastseg.max_unpool2d(values * 2, codes, 2).square().sum().backward()
    values, indices = F.max_pool2d(theirs, 2, return_indices=True)
    F.max_unpool2d(values * 2, indices, 2).square().sum().backward()
    assert_identical(ours.grad, theirs.grad)


def test_ops_run_on_the_current_stream():
    """Beside a slow producer on a side stream, work on any other stream would read too early."""
    stream = torch.cuda.Stream()
    for name, arguments, expected in calls(CASES[1], torch.float32, LAYOUTS[0]):
        ready = to_device(arguments)
        late = tuple(torch.zeros_like(a) if isinstance(a, torch.Tensor) else a for a in ready)
        torch.cuda.synchronize()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(20_000_000)
            for target, source in zip(late, ready, strict=True):
                if isinstance(target, torch.Tensor):
                    target.copy_(source)
            outputs = run(name, late)
        stream.synchronize()
        check(outputs, expected)


@each_layout
def test_ops_can_be_captured_in_a_graph(layout):
    for name, arguments, expected in calls(CASES[1], torch.float16, layout):
        ready = to_device(arguments)
        inputs = tuple(a.clone() if isinstance(a, torch.Tensor) else a for a in ready)
        run(name, inputs)  # loads the kernels
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run(name, inputs)
        for out in outputs:
            out.zero_()
        graph.replay()
        torch.cuda.synchronize()
        check(outputs, expected)


def test_repeated_flat_indices_are_deterministic():
    values = torch.arange(64 * 64, device="cuda").float().view(1, 1, 64, 64)
    indices = torch.randint(0, 50, values.shape, device="cuda")
    last = torch.zeros(128 * 128)
    for index, value in zip(indices.flatten().tolist(), values.flatten().tolist(), strict=True):
        last[index] = value
    for _ in range(10):
        out = ops.max_unpool2d(values, indices, (128, 128), (2, 2))
        assert torch.equal(out.flatten().cpu(), last)


def test_more_than_one_launch():
    """2^30 tiles make a launch; windows of odd rows are a tile each."""
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    x = torch.randn(9, 22000, 22001, device="cuda", dtype=torch.bfloat16)
    values, codes = fastseg.max_pool2d(x, 2)
    assert values.numel() > 1 << 30
    for plane, v, c in zip(x, values, codes, strict=True):
        expected, indices = F.max_pool2d(plane[None], 2, return_indices=True)
        assert torch.equal(v, expected[0])
        assert torch.equal(fastseg.codes_to_indices(c[None], plane.shape, 2), indices)


def lattice_of(case: LatticeCase, dtype=torch.float32) -> PermutohedralTensors:
    """Built on the GPU, then moved."""
    features = case.features(dtype).cuda()
    lattice = ops.permutohedral_lattice(features, case.refine, case.dilation)
    assert all(x.is_cuda for x in lattice[:7])
    assert not lattice[7].is_cuda
    return PermutohedralTensors(*(x.cpu() for x in lattice))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", LATTICES, ids=str)
def test_lattices_match_the_reference(case, dtype):
    actual = lattice_of(case, dtype)
    expected = reference.permutohedral_lattice(case.features(dtype), case.refine, case.dilation)
    assert_same_lattice(actual, expected, case)
    assert_format(actual, case)


@pytest.mark.parametrize("spread", [0.0, 0.1, 3.0, 100.0])
@pytest.mark.parametrize("dilation", [0, 1, 2])
def test_repeated_lattices_are_identical(dilation, spread):
    case = LatticeCase(2, 5, 187500, 1.0, dilation, spread)
    first = lattice_of(case)
    for _ in range(5):
        for a, b in zip(lattice_of(case), first, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(("value", "message"), [(torch.nan, "finite, got nan"), (1e9, "smaller")])
def test_bad_features_are_an_error_after_which_the_device_goes_on(value, message):
    features = torch.randn(2, 3, 1000, device="cuda")
    features[1, 2, 999] = value
    with pytest.raises(RuntimeError, match=f"permutohedral_lattice: features must be {message}"):
        ops.permutohedral_lattice(features)
    assert ops.permutohedral_lattice(features[:1])[7].item() > 0


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one():
    for name, arguments, expected in calls(CASES[1], torch.float32, LAYOUTS[0]):
        outputs = run(name, to_device(arguments, "cuda:1"))
        assert all(out.device.index == 1 for out in outputs)
        check(outputs, expected)
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("max_unpool2d: a code", "max_unpool2d(v, (v + 6).byte(), (16, 16), 2)"),
        ("max_pool2d_backward: a code", "max_pool2d_backward(v, (v + 6).byte(), (16, 16), *w)"),
        ("max_unpool2d_backward: a code", "max_unpool2d_backward(g, (v + 6).byte(), (8, 8), *w)"),
        ("max_unpool2d: a flat index", "max_unpool2d(v, (v + 255).long(), (16, 16), 2)"),
    ],
)
def test_a_bad_position_fails_the_stream_and_names_the_op(message, call):
    """In a process of its own: a device-side assert ends the CUDA context."""
    script = (
        "import fastseg, torch\n"
        "v, g = torch.ones(1, 1, 8, 8).cuda(), torch.ones(1, 1, 16, 16).cuda()\n"
        f"w = {WINDOW}\n"
        f"torch.ops.fastseg.{call}\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode != 0
    assert f"fastseg::{message}" in done.stdout + done.stderr
