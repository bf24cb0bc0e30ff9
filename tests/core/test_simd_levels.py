"""Instruction sets, threads, streaming stores, memory: what must not change a result."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg._core import extension, library
from tests.pool.pool_cases import FLOATS, LAYOUTS, assert_identical, special_values

LEVELS = extension.available_simd_levels()
needs_kernels = pytest.mark.skipif(not LEVELS, reason="the CPU kernels are not built")
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
STREAMING_BYTES = (
    24 << 20
)  # csrc/cpu/threads/parallel.h: larger outputs are written past the caches


def run_with(level: str) -> str:
    environment = {**os.environ, "FASTSEG_SIMD": level}
    script = "from fastseg._core import library; print(library.backend('max_pool2d', 'cpu'))"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@needs_kernels
def test_the_environment_chooses_the_level():
    assert run_with("portable") == "C++ (portable)"


@needs_kernels
def test_use_simd_level():
    before = extension.simd_level()
    for level in LEVELS:
        with extension.use_simd_level(level):
            assert extension.simd_level() == level
            assert library.backend("max_unpool2d", "cpu") == f"C++ ({level})"
        assert extension.simd_level() == before
    with pytest.raises(KeyError), extension.use_simd_level("portable"):
        raise KeyError
    assert extension.simd_level() == before
    with (
        pytest.raises(ValueError, match="SIMD level 'sse' is not one of"),
        extension.use_simd_level("sse"),
    ):
        pass


@needs_kernels
def test_every_op_has_a_kernel():
    for op in (
        "max_pool2d",
        "batch_norm_relu_max_pool2d",
        "max_unpool2d",
        "pack_codes",
        "max_pool2d_backward",
        "max_unpool2d_backward",
    ):
        assert library.backend(op, "cpu").startswith("C++")


def everything(x, scale, shift, window):
    """All outputs and gradients of a chain through the ops."""
    x = x.detach().requires_grad_()
    values, codes = fastseg.max_pool2d(x, *window)
    other, other_codes = fastseg.batch_norm_relu_max_pool2d(x, scale, shift, *window)
    indices = fastseg.codes_to_indices(other_codes, x.shape, *window)
    size = x.shape[-2:]
    y = fastseg.max_unpool2d(values, codes, *window, output_size=size)
    z = fastseg.max_unpool2d(other, indices, *window, output_size=size)
    grads = torch.autograd.grad((y.float() * z.float()).nan_to_num(0, 1, -1).sum(), x)
    return [t.detach() for t in (values, codes, other, other_codes, y, z, *grads)]


@each_layout
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("window", [(2,), (3, 2, 1)], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(window, dtype, layout):
    """160 x 182 planes give every thread a share, which ends within a plane."""
    x = special_values((2, 3, 160, 182), dtype, layout)
    scale, shift = torch.randn(3), torch.randn(3)
    expected = None
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        actual = everything(x, scale, shift, window)
        expected = expected or actual
        for a, b in zip(actual, expected, strict=True):
            assert_identical(a, b)


@each_layout
@pytest.mark.usefixtures("garbage_in_new_memory")
def test_streamed_outputs(layout, simd_level):
    """Rows of 1803 and 901 elements are not whole cache lines."""
    x = torch.randint(-50, 50, (1, 8, 1803, 1803)).float().contiguous(memory_format=layout)
    values, codes = fastseg.max_pool2d(x, 2)
    assert values.nbytes > STREAMING_BYTES
    expected, indices = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(values, expected)
    assert torch.equal(fastseg.codes_to_indices(codes, x.shape, 2), indices)
    del x
    codes = codes[..., :480, :460].contiguous(memory_format=layout)
    indices = fastseg.codes_to_indices(codes, (961, 921), 2)
    grad = torch.arange(codes.numel()).view(codes.shape).float().contiguous(memory_format=layout)
    expected = F.max_unpool2d(grad, indices, 2, output_size=(961, 921))
    assert expected.nbytes > STREAMING_BYTES
    assert torch.equal(fastseg.max_unpool2d(grad, codes, 2, output_size=(961, 921)), expected)
    window = ((2, 2), (2, 2), (0, 0), (1, 1))
    actual = torch.ops.fastseg.max_pool2d_backward(grad, codes, (961, 921), *window)
    assert torch.equal(actual, expected)
    del actual
    # The pooled side of max_unpool2d_backward outgrows the caches where windows are 1 x 1.
    ones = torch.zeros_like(expected, dtype=torch.uint8)
    window = ((1, 1), (1, 1), (0, 0), (1, 1))
    actual = torch.ops.fastseg.max_unpool2d_backward(expected, ones, (961, 921), *window)
    assert torch.equal(actual, expected)


def test_python_threads():
    """Eight callers at once, each with data of its own."""
    jobs = []
    for seed in range(8):
        x = special_values((1, 4, 60, 61 + seed), torch.float32, LAYOUTS[seed % 2], seed)
        arguments = (x, torch.randn(4), torch.randn(4), (2,) if seed % 3 else (3, 2, 1))
        jobs.append((arguments, everything(*arguments)))

    def check(job):
        arguments, expected = job
        for _ in range(10):
            for a, b in zip(everything(*arguments), expected, strict=True):
                assert torch.equal(a.nan_to_num(7), b.nan_to_num(7))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, jobs))


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    torch.set_num_threads(1)
    x = torch.randn(1, 8, 64, 64)
    arguments = (x, torch.randn(8), torch.randn(8), (2,))

    def calls(count):
        for _ in range(count):
            everything(*arguments)
            with pytest.raises(RuntimeError):
                fastseg.max_unpool2d(x, torch.full_like(x, 9, dtype=torch.uint8), 2)

    calls(30)
    before = resident()
    calls(300)
    # One lost output of 128 KB a call would be 38 MB.
    assert resident() - before < 10 << 20


@pytest.mark.skipif("avx512" not in LEVELS, reason="the processor has no AVX-512")
def test_float64_is_computed_by_the_kernels_of_avx2():
    """The sums over lanes of a weight's gradient depend on how many lanes there are."""
    torch.manual_seed(0)
    x, grad = torch.randn(2, 3, 4, 29, 31, dtype=torch.float64)
    results = []
    for level in ("avx2", "avx512"):
        with extension.use_simd_level(level):
            results.append(
                torch.ops.fastseg.depthwise_conv2d_weight_grad(
                    x, grad, (3, 3), (1, 1), (1, 1), (1, 1)
                )
            )
    assert_identical(*results)
