"""fastseg.max_unpool2d beside torch's, by codes and by int64 indices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import reference
from tests.pool.pool_cases import (
    CASES,
    FLOATS,
    LAYOUTS,
    PoolCase,
    assert_identical,
    assert_layout,
    one_thread,
    special_values,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
UNPOOL_CASES = (
    *(case for case in CASES if case.dilation == (1, 1)),
    PoolCase((1, 2, 3, 2 * 1029 + 1)),  # rows longer than the kernels do at once
    PoolCase((1, 1030, 2, 5)),
    PoolCase((1, 1, 3, 1027), (3, 3), (1, 1), (1, 1)),
)
each_case = pytest.mark.parametrize("case", UNPOOL_CASES, ids=str)
each_kind = pytest.mark.parametrize("kind", ["codes", "indices"])


def pooled(case, dtype, layout):
    """(codes, indices) of a pooling, and values that do not belong to it."""
    x = special_values(case.shape, torch.float32, layout)
    codes = reference.max_pool2d(x, *case.window, case.ceil_mode)[1]
    indices = reference.codes_to_indices(codes, case.shape[-2:], *case.window)
    return codes, indices, special_values(codes.shape, dtype, layout, seed=1)


@one_thread()
def torch_unpool(values, indices, output_size):
    """torch's scatter for any size, which F.max_unpool2d restricts."""
    return torch._C._nn.max_unpool2d(values, indices, list(output_size))


@each_layout
@each_dtype
@each_case
def test_output_is_torchs(case, dtype, layout, simd_level):
    """Where windows overlap, values of one element differ: the last window in raster order wins."""
    codes, indices, values = pooled(case, dtype, layout)
    size = case.shape[-2:]
    expected = torch_unpool(values, indices, size)
    arguments = (size, *case.window[:3])
    for positions in (codes, indices):
        actual = torch.ops.fastseg.max_unpool2d(values, positions, *arguments)
        assert_identical(actual, expected)
        assert_layout(actual, layout)
        assert_identical(reference.max_unpool2d(values, positions, *arguments), expected)


def test_the_layout_is_that_of_the_indices():
    values, codes = fastseg.max_pool2d(torch.randn(2, 4, 6, 8), 2)
    expected = F.max_unpool2d(values, fastseg.codes_to_indices(codes, (6, 8), 2), 2)
    for of_values, of_codes in itertools.product(LAYOUTS, LAYOUTS):
        v, c = values.contiguous(memory_format=of_values), codes.contiguous(memory_format=of_codes)
        for positions in (c, fastseg.codes_to_indices(c, (6, 8), 2)):
            actual = fastseg.max_unpool2d(v, positions, 2)
            assert_identical(actual, expected)
            assert_layout(actual, of_codes)


@each_kind
def test_strides_of_the_inputs(kind, simd_level):
    x = torch.randn(3, 4, 6, 10)
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    expected = F.max_unpool2d(values, indices, 2)
    positions = indices if kind == "indices" else fastseg.indices_to_codes(indices, x.shape, 2)

    def other_strides(t):
        wide = t.new_zeros((3, 8, 5, 4))
        wide[:, ::2, :, 1:] = t.transpose(-1, -2)
        return wide[:, ::2, :, 1:].transpose(-1, -2)

    every_values, every_positions = ((t, other_strides(t)) for t in (values, positions))
    for v, p in itertools.product(every_values, every_positions):
        assert_identical(fastseg.max_unpool2d(v, p, 2), expected)
    assert_identical(fastseg.max_unpool2d(values[0], positions[0], 2), expected[0])
    one = values[:1, :1, :1, :1]
    assert_identical(
        fastseg.max_unpool2d(one.expand_as(values), positions, 2),
        F.max_unpool2d(one.expand_as(values).contiguous(), indices, 2),
    )


@pytest.mark.parametrize(
    ("size", "window"),
    [
        ((6, 8), (2,)),
        ((7, 9), (2,)),
        ((7, 8), (3, 2, 1)),
        ((9, 10), ((3, 2), (3, 2))),
        ((5, 6), (3, 1)),
    ],
)
@each_kind
def test_output_sizes(size, window, kind, simd_level):
    x = torch.randn(2, 3, *size)
    values, indices = F.max_pool2d(x, *window, return_indices=True)
    positions = indices
    if kind == "codes":
        values, positions = fastseg.max_pool2d(x, *window)
    for given in (size, list(size), torch.Size(size), (2, 3, *size), (99, 7, *size), x.shape):
        actual = fastseg.max_unpool2d(values, positions, *window, output_size=given)
        assert_identical(actual, F.max_unpool2d(values, indices, *window, output_size=given))


@each_kind
def test_default_size(kind, simd_level):
    for size, window in (
        ((6, 8), (2,)),
        ((7, 9), (3, 2, 1)),
        ((6, 9), (3, (2, 3))),
        ((5, 6), (3, 1)),
    ):
        values, indices = F.max_pool2d(torch.randn(2, 3, *size), *window, return_indices=True)
        positions = indices
        if kind == "codes":
            positions = fastseg.indices_to_codes(indices, size, *window)
        actual = fastseg.max_unpool2d(values, positions, *window)
        assert_identical(actual, F.max_unpool2d(values, indices, *window))


def test_sizes_out_of_range_are_torchs_value_errors():
    """Also that exactly the sizes that torch takes are taken."""
    values, indices = F.max_pool2d(torch.randn(1, 2, 11, 12), 3, 2, 1, return_indices=True)
    indices.zero_()
    for size in itertools.product(range(8, 15), range(8, 15)):
        outcomes = []
        for function in (F.max_unpool2d, fastseg.max_unpool2d):
            try:
                outcomes.append(function(values, indices, 3, 2, 1, size).shape)
            except ValueError as error:
                assert "output_size" in str(error)  # noqa: PT017
                outcomes.append("ValueError")
        assert outcomes[0] == outcomes[1], size


def test_windows_of_numpys_integers_and_of_none():
    values, codes = fastseg.max_pool2d(torch.randn(1, 2, 9, 9), 3, 2, 1)
    three, two, one = np.int64(3), np.int32(2), np.int64(1)
    expected = fastseg.max_unpool2d(values, codes, 3, 2, 1)
    assert_identical(fastseg.max_unpool2d(values, codes, three, two, one), expected)
    for name, number in (("kernel_size", 3.0), ("stride", 2.0), ("padding", 1.0)):
        window = {"kernel_size": 3, "stride": 2, "padding": 1, name: number}
        with pytest.raises(TypeError, match=f"max_unpool2d: {name} must be one integer or two"):
            fastseg.max_unpool2d(values, codes, **window)
    with pytest.raises(ValueError, match=r"max_unpool2d: output_size must be \(H, W\).*got 8"):
        fastseg.max_unpool2d(values, codes, 3, 2, 1, output_size=8)


@each_layout
def test_a_code_keeps_row_and_column_whatever_the_width(layout, simd_level):
    """The documented difference: a flat index moves with the width of the output."""
    x = torch.rand(1, 3, 6, 8).contiguous(memory_format=layout) + 1
    values, codes = fastseg.max_pool2d(x, 2)
    small = fastseg.max_unpool2d(values, codes, 2)
    for height, width in ((6, 9), (7, 8), (7, 9)):
        large = fastseg.max_unpool2d(values, codes, 2, output_size=(height, width))
        assert_identical(large[..., :6, :8], small)
        assert large.count_nonzero() == small.count_nonzero()
    indices = fastseg.codes_to_indices(codes, (6, 8), 2)
    flat = fastseg.max_unpool2d(values, indices, 2, output_size=(6, 9))
    assert not torch.equal(flat[..., :8], small)


def test_outputs_smaller_than_the_default(simd_level):
    """ceil_mode windows reach out of the plane; their codes do not."""
    for layout, dtype in itertools.product(LAYOUTS, FLOATS):
        x = special_values((2, 5, 7, 9), dtype, layout)
        values, codes = fastseg.max_pool2d(x, 2, ceil_mode=True)
        actual = fastseg.max_unpool2d(values, codes, 2, output_size=x.shape)
        indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)[1]
        assert_identical(actual, F.max_unpool2d(values, indices, 2, output_size=x.shape))


def test_zeros_keep_their_sign():
    values = torch.tensor([[[[-0.0, 0.0]]]])
    out = fastseg.max_unpool2d(values, torch.tensor([[[[3, 1]]]], dtype=torch.uint8), 2)
    assert torch.signbit(out).nonzero().tolist() == [[0, 0, 1, 1]]


@each_layout
@each_dtype
def test_duplicate_indices_the_last_wins(dtype, layout):
    values = torch.arange(1.0, 41).view(2, 2, 2, 5).to(dtype).contiguous(memory_format=layout)
    indices = torch.randint(0, 3, values.shape).contiguous(memory_format=layout)
    last = torch.zeros(2, 2, 40, dtype=dtype)
    for n, c, i, j in itertools.product(*map(range, values.shape)):
        last[n, c, indices[n, c, i, j]] = values[n, c, i, j]
    assert_identical(fastseg.max_unpool2d(values, indices, 2), last.view(2, 2, 4, 10))


# Positions out of range.


def bad_positions():
    good = torch.zeros(2, 3, 4, 5, dtype=torch.uint8)
    for code in (4, 5, 200, 255):
        bad = good.clone()
        bad[1, 2, 3, 4] = code
        yield bad
    flat = torch.zeros(2, 3, 4, 5, dtype=torch.int64)
    for index in (-1, 80, 2**40, -(2**63), 2**63 - 1):
        bad = flat.clone()
        bad[1, 2, 3, 4] = index
        yield bad


@each_layout
@pytest.mark.parametrize("number", range(9))
def test_positions_out_of_range_are_refused(number, layout, simd_level):
    bad = list(bad_positions())[number].contiguous(memory_format=layout)
    good = torch.zeros_like(bad)
    message = "lies outside|outside its window|outside the plane"
    for dtype in FLOATS:
        values, grad = torch.randn(2, 3, 4, 5, dtype=dtype), torch.randn(2, 3, 8, 10, dtype=dtype)
        window = ((2, 2), (2, 2), (0, 0), (1, 1))
        fastseg.max_unpool2d(values, good, 2)
        with pytest.raises(RuntimeError, match=f"max_unpool2d: indices hold .*({message})"):
            fastseg.max_unpool2d(values, bad, 2)
        with pytest.raises(RuntimeError, match=f"max_unpool2d_backward: .*({message})"):
            torch.ops.fastseg.max_unpool2d_backward(grad, bad, (4, 5), *window)
        if bad.dtype == torch.uint8:
            with pytest.raises(RuntimeError, match=f"max_pool2d_backward: .*({message})"):
                torch.ops.fastseg.max_pool2d_backward(values, bad, (8, 10), *window)
        with pytest.raises(RuntimeError, match=message):
            reference.max_unpool2d(values, bad, (8, 10), 2)


@each_layout
def test_codes_that_name_padding_are_refused(layout, simd_level):
    """A tap that exists but lies outside of the plane, at each of its four sides."""
    values = torch.randn(1, 5, 4, 4).contiguous(memory_format=layout)
    codes = torch.full_like(values, 4, dtype=torch.uint8)  # the centre
    fastseg.max_unpool2d(values, codes, 3, 2, 1)
    for (i, j), code in {(0, 1): 1, (1, 0): 3, (3, 2): 7, (2, 3): 5}.items():
        bad = codes.clone()
        bad[0, 2, i, j] = code
        # The default size ends at the centre of the last windows.
        with pytest.raises(RuntimeError, match="max_unpool2d: indices hold a code that lies"):
            fastseg.max_unpool2d(values, bad, 3, 2, 1)


@pytest.mark.parametrize("channels", [3, 16])
@each_layout
def test_a_bad_code_is_found_in_every_window(layout, channels, simd_level):
    """Rows of dilated windows cover an output's rows in another order than they lie in."""
    x = torch.randn(1, channels, 9, 8).contiguous(memory_format=layout)
    windows = {"dilated": (3, 1, 2, 2), "strided": (3, 2, 1, 1), "disjoint": (2, 2, 0, 1)}
    for kernel, stride, padding, dilation in windows.values():
        values, codes = fastseg.max_pool2d(x, kernel, stride, padding, dilation)
        window = [(n, n) for n in (kernel, stride, padding, dilation)]
        for i, j in itertools.product(*map(range, codes.shape[-2:])):
            bad = codes.clone()
            bad[0, 1, i, j] = kernel**2
            with pytest.raises(RuntimeError, match="indices hold a code that lies outside"):
                torch.ops.fastseg.max_pool2d_backward(values, bad, (9, 8), *window)
