"""The CUDA kernels and their bindings, run on the CPU (tests/cuda_on_cpu), and the references."""

from __future__ import annotations

import ctypes

import pytest
import torch

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import SANITIZE, load
from tests.pool.pool_cases import (
    CASES,
    CASES_2X2,
    FLOATS,
    LAYOUTS,
    PoolCase,
    assert_identical,
    assert_layout,
    finite_values,
    misaligned,
    special_values,
)

ops = torch.ops.fastseg_cuda_on_cpu

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_case = pytest.mark.parametrize("case", CASES, ids=str)
each_2x2 = pytest.mark.parametrize("case", CASES_2X2, ids=str)


def pooled(case: PoolCase, dtype, layout):
    """Values without NaN, and their codes, in the layout."""
    x = finite_values(case.shape, dtype, layout, seed=1)
    return reference.max_pool2d(x, *case.window, case.ceil_mode)


def packings(case: PoolCase, codes, layout):
    """The codes in all forms that a backward pass may keep them in: (codes, packed_dim)."""
    yield codes, 0
    if case.window == PoolCase(case.shape).window and not case.ceil_mode:
        packed_dim = -1 if layout == torch.contiguous_format else -3
        yield reference.pack_codes(codes, packed_dim), packed_dim


def test_new_memory_holds_garbage():
    """So that an element that no thread writes differs from the reference."""
    assert torch.empty(1000, dtype=torch.uint8).all()


@each_case
@each_layout
@each_dtype
def test_max_pool2d(case, layout, dtype):
    x = special_values(case.shape, dtype, layout)
    values, codes = ops.max_pool2d(x, *case.window, case.ceil_mode)
    expected_values, expected_codes = reference.max_pool2d(x, *case.window, case.ceil_mode)
    assert_identical(values, expected_values)
    assert_identical(codes, expected_codes)
    assert_layout(values, layout)
    assert_layout(codes, layout)


@each_case
@each_layout
@each_dtype
def test_batch_norm_relu_max_pool2d(case, layout, dtype):
    x = special_values(case.shape, dtype, layout)
    channels = torch.arange(case.shape[1])
    # Powers of two: products are exact, and fused with the sum or not, one rounding is left.
    scale = 2.0 ** (channels % 5 - 2) * (1 - 2 * (channels % 2))
    shift = channels % 3 / 4 - 0.25
    arguments = (x, scale, shift, *case.window, case.ceil_mode)
    values, codes = ops.batch_norm_relu_max_pool2d(*arguments)
    expected_values, expected_codes = reference.batch_norm_relu_max_pool2d(*arguments)
    assert_identical(values, expected_values)
    assert_identical(codes, expected_codes)


@each_dtype
def test_batch_norm_rounds_before_it_compares(dtype):
    """Values that differ before the rounding to x's dtype tie after it, and the first one wins."""
    x = torch.tensor([1.0, 1.0 + 2 * torch.finfo(dtype).eps]).to(dtype).expand(1, 1, 2, 2)
    shift = torch.tensor([64.0], dtype=torch.float64)
    _, codes = ops.batch_norm_relu_max_pool2d(x, shift.new_ones(1), shift, 2)
    assert codes.item() == 0


@each_case
@each_layout
@each_dtype
def test_max_pool2d_backward(case, layout, dtype):
    values, codes = pooled(case, dtype, layout)
    grad = finite_values(values.shape, dtype, layout, seed=2)
    for form, packed_dim in packings(case, codes, layout):
        arguments = (grad, form, case.shape[-2:], *case.window, packed_dim)
        out = ops.max_pool2d_backward(*arguments)
        assert_identical(out, reference.max_pool2d_backward(*arguments))
        assert_layout(out, layout)


@each_case
@each_layout
@each_dtype
def test_max_unpool2d(case, layout, dtype):
    if case.dilation != (1, 1):
        pytest.skip("max_unpool2d has no dilation")
    values, codes = pooled(case, dtype, layout)
    height, width = case.shape[-2:]
    for size in ((height, width), (height + 1, width), (height, width + 1)):
        arguments = (values, codes, size, *case.window[:3])
        out = ops.max_unpool2d(*arguments)
        assert_identical(out, reference.max_unpool2d(*arguments))
        assert_layout(out, layout)


@each_case
@each_layout
@each_dtype
def test_max_unpool2d_backward(case, layout, dtype):
    _, codes = pooled(case, dtype, layout)
    grad = special_values(case.shape, dtype, layout, seed=3)
    for form, packed_dim in packings(case, codes, layout):
        arguments = (grad, form, codes.shape[-2:], *case.window, packed_dim)
        out = ops.max_unpool2d_backward(*arguments)
        assert_identical(out, reference.max_unpool2d_backward(*arguments))


@each_layout
@each_dtype
def test_flat_indices(layout, dtype):
    """Indices may repeat: the last window in raster order stays, each takes its gradient."""
    values = special_values((2, 3, 9, 7), dtype, layout)
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, 30, values.shape, generator=generator)
    indices = indices.contiguous(memory_format=layout)
    expected = torch.zeros(2, 3, 50, dtype=dtype)
    flat = zip(indices.flatten(2).unbind(-1), values.flatten(2).unbind(-1), strict=True)
    for index, value in flat:
        expected.scatter_(-1, index[..., None], value[..., None])
    out = ops.max_unpool2d(values, indices, (5, 10), (2, 2))
    assert_identical(out, expected.view(2, 3, 5, 10))

    grad = special_values((2, 3, 5, 10), dtype, layout, seed=1)
    arguments = (grad, indices, (9, 7), (2, 2), (2, 2), (0, 0), (1, 1))
    assert_identical(
        ops.max_unpool2d_backward(*arguments), reference.max_unpool2d_backward(*arguments)
    )


@each_2x2
@each_dtype
def test_memory_off_vector_boundaries(case, dtype):
    """Views into the middle of a tensor."""
    for layout in LAYOUTS:
        x = misaligned(finite_values(case.shape, dtype, layout))
        values, codes = ops.max_pool2d(x, *case.window)
        expected = reference.max_pool2d(x, *case.window)
        assert_identical(values, expected[0])
        assert_identical(codes, expected[1])
        unpool = (misaligned(values), misaligned(codes), case.shape[-2:], *case.window[:3])
        assert_identical(ops.max_unpool2d(*unpool), reference.max_unpool2d(*unpool))
        pick = (x, misaligned(codes), codes.shape[-2:], *case.window)
        assert_identical(ops.max_unpool2d_backward(*pick), reference.max_unpool2d_backward(*pick))


@pytest.mark.parametrize("shape", [(2, 3, 4, 32), (1, 2, 3, 7), (1, 16, 2, 5), (2, 1, 1, 1)])
def test_pack_codes(shape):
    codes = torch.randint(0, 4, shape, dtype=torch.uint8)
    for packed_dim, layout in zip((-1, -3), LAYOUTS, strict=True):
        laid_out = codes.contiguous(memory_format=layout)
        expected = reference.pack_codes(laid_out, packed_dim)
        for form in (laid_out, misaligned(laid_out)):
            assert_identical(ops.pack_codes(form, packed_dim), expected)


@pytest.mark.parametrize("shape", [(1, 1, 8, 16), (1, 1, 3, 3)])
@pytest.mark.parametrize("kernel", [2, 3])
def test_a_bad_code_stops_each_op_that_reads_codes(shape, kernel):
    window = ((kernel, kernel), (2, 2), (kernel // 3, kernel // 3), (1, 1))
    values, codes = reference.max_pool2d(torch.randn(shape), *window)
    codes[..., -1, -1] = kernel * kernel
    size, small = shape[-2:], codes.shape[-2:]
    with pytest.raises(RuntimeError, match=r"fastseg::max_unpool2d: a code lies outside"):
        ops.max_unpool2d(values, codes, size, *window[:3])
    with pytest.raises(RuntimeError, match=r"fastseg::max_pool2d_backward: a code lies outside"):
        ops.max_pool2d_backward(values, codes, size, *window)
    with pytest.raises(RuntimeError, match=r"fastseg::max_unpool2d_backward: a code lies outside"):
        ops.max_unpool2d_backward(torch.randn(shape), codes, small, *window)


def test_a_code_in_the_padding_is_bad():
    values, codes = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 4, dtype=torch.uint8)
    assert ops.max_unpool2d(values, codes, (3, 3), (3, 3), (2, 2), (1, 1)).sum() == 4
    codes[0, 0, 0, 0] = 0
    with pytest.raises(RuntimeError, match="a code lies outside"):
        ops.max_unpool2d(values, codes, (3, 3), (3, 3), (2, 2), (1, 1))


@pytest.mark.parametrize("index", [-1, 16])
def test_a_bad_flat_index_stops_the_op(index):
    values, indices = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2, dtype=torch.int64)
    indices[0, 0, 1, 0] = index
    with pytest.raises(RuntimeError, match=r"max_unpool2d: a flat index lies outside its plane"):
        ops.max_unpool2d(values, indices, (4, 4), 2)
    with pytest.raises(RuntimeError, match=r"max_unpool2d_backward: a flat index lies outside"):
        ops.max_unpool2d_backward(torch.ones(1, 1, 4, 4), indices, (2, 2), 2, 2, 0, 1)


def test_what_the_kernels_cannot_count_is_refused():
    with pytest.raises(RuntimeError, match=r"max_pool2d: on CUDA, .* below 2\^30"):
        ops.max_pool2d(torch.ones(1, 1, 4, 4), 2, 1, 2**29 - 1, 2**30 - 2)


def block_sum(mistake: str) -> tuple[str | None, list[int]]:
    """The shim's self-test: why the launch failed, and the sum and the largest block's sum."""
    mistakes = ("none", "no barrier", "divergent barrier", "past shared", "misaligned", "lane left")
    run_sum = load()[0].run_sum
    run_sum.restype = ctypes.c_char_p
    numbers = (ctypes.c_int * 1000)(*range(1000))
    out = (ctypes.c_int * 2)(0, 0)
    reason = run_sum(numbers, out, 1000, mistakes.index(mistake))
    return reason and reason.decode(), list(out)


def test_shim_runs_barriers_exchanges_and_atomics():
    parts = [sum(i for i in range(1000) if i // 128 % 3 == block) for block in range(3)]
    assert block_sum("none") == (None, [sum(parts), max(parts)])


def test_shim_shows_a_missing_barrier(monkeypatch):
    results = []
    for order in ("forward", "reverse", "shuffled"):
        monkeypatch.setenv("CUDA_ON_CPU_ORDER", order)
        results.append(block_sum("no barrier")[1][0])
    assert any(result != sum(range(1000)) for result in results)


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        ("divergent barrier", "threads wait for others"),
        ("lane left", "threads wait for others"),
        ("misaligned", "misaligned address"),
    ],
)
def test_shim_refuses(mistake, reason):
    assert reason in block_sum(mistake)[0]


@pytest.mark.parametrize(
    ("blocks_y", "threads", "shared_bytes", "reason"),
    [
        (65535, 32, 0, None),
        (65536, 32, 0, "a grid that is too large"),
        (0, 32, 0, "an empty grid"),
        (1, 1024, 48 << 10, None),
        (1, 1056, 0, "too many threads"),
        (1, 32, (48 << 10) + 1, "more shared memory than the kernel was allowed"),
    ],
)
def test_shim_has_the_limits_of_a_launch(blocks_y, threads, shared_bytes, reason):
    """Also of shared memory where another kernel was allowed more."""
    run = load()[0].run_numbered
    run.restype = ctypes.c_char_p
    said = run(ctypes.byref(ctypes.c_int()), blocks_y, threads, shared_bytes)
    assert said == (reason and f"invalid configuration: {reason}".encode())


@pytest.mark.skipif(not SANITIZE, reason="run by test_address_sanitizer")
def test_shim_sees_accesses_past_shared_memory():
    block_sum("past shared")  # ends the process
