"""Conversions between byte codes, torch's int64 indices and packed codes."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastseg
from fastseg import reference
from tests.pool.pool_cases import CASES, LAYOUTS, assert_identical, assert_layout, special_values

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
ops = torch.ops.fastseg
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))


@each_layout
@pytest.mark.parametrize("case", CASES, ids=str)
def test_conversions_are_inverse(case, layout):
    x = special_values(case.shape, torch.float32, layout)
    _, indices = F.max_pool2d(x, *case.window, case.ceil_mode, return_indices=True)
    codes = fastseg.indices_to_codes(indices, case.shape, *case.window)
    assert_identical(codes, fastseg.max_pool2d(x, *case.window, case.ceil_mode)[1])
    assert_identical(fastseg.codes_to_indices(codes, case.shape, *case.window), indices)
    assert_layout(codes, layout)


def test_every_code_by_hand():
    """Raster order in the window: code = ki * kernel_width + kj."""
    codes = torch.arange(6, dtype=torch.uint8).view(1, 2, 3)
    # Windows of 2 x 3 taps, 2 rows and 4 columns apart, on a plane of 5 x 12.
    indices = fastseg.codes_to_indices(codes, (5, 12), (2, 3), (2, 4))
    assert indices.tolist() == [[[0, 5, 10], [24 + 12, 24 + 4 + 13, 24 + 8 + 14]]]
    assert indices.dtype == torch.int64
    assert_identical(fastseg.indices_to_codes(indices, (5, 12), (2, 3), (2, 4)), codes)


def test_all_256_codes():
    codes = torch.arange(256).view(1, 1, 256, 1).expand(1, 2, 256, 1).byte()
    indices = fastseg.codes_to_indices(codes, (16 * 256, 16), 16)
    assert_identical(fastseg.indices_to_codes(indices, (16 * 256, 16), 16), codes)
    values = torch.rand(1, 2, 256, 1) + 1
    out = fastseg.max_unpool2d(values, codes, 16)
    assert_identical(out, F.max_unpool2d(values, indices, 16))


@pytest.mark.parametrize("code", [4, 255])
def test_codes_outside_the_window_are_refused(code):
    codes = torch.zeros(1, 2, 3, 3, dtype=torch.uint8)
    codes[0, 1, 2, 2] = code
    with pytest.raises(RuntimeError, match="codes_to_indices: codes hold a code outside"):
        fastseg.codes_to_indices(codes, (6, 6), 2)


@pytest.mark.parametrize("index", [-1, 36, 2, 18, 2**62, -(2**63)])
def test_indices_outside_the_window_are_refused(index):
    indices = fastseg.codes_to_indices(torch.zeros(1, 2, 3, 3, dtype=torch.uint8), (6, 6), 2)
    indices[0, 0, 0, 0] = index
    with pytest.raises(RuntimeError, match="indices_to_codes: indices hold an index outside"):
        fastseg.indices_to_codes(indices, (6, 6), 2)


def test_indices_between_dilated_taps_are_refused():
    x = torch.randn(1, 1, 7, 7)
    _, indices = F.max_pool2d(x, 3, 1, 0, 2, return_indices=True)
    fastseg.indices_to_codes(indices, (7, 7), 3, 1, 0, 2)
    indices[0, 0, 0, 0] = 8
    with pytest.raises(RuntimeError, match="outside its window"):
        fastseg.indices_to_codes(indices, (7, 7), 3, 1, 0, 2)


# Packed codes: four codes of 2x2 windows in a byte.


def random_codes(*shape):
    return torch.randint(0, 4, shape, dtype=torch.uint8)


def test_packing_by_hand():
    codes = torch.tensor([1, 2, 3, 0, 3]).byte().view(1, 1, 5)
    assert ops.pack_codes(codes, -1).tolist() == [[[1 + (2 << 2) + (3 << 4), 3]]]


@pytest.mark.parametrize("size", [*range(1, 18), 33])
def test_packing_is_the_references(size):
    for packed_dim, shape in ((-1, (2, 3, 5, size)), (-3, (2, size, 3, 5)), (-1, (3, 2, size))):
        codes = random_codes(*shape)
        sources = [codes, codes.transpose(-1, -2).contiguous().transpose(-1, -2)]
        if len(shape) == 4:
            sources.append(codes.contiguous(memory_format=torch.channels_last))
        for source in sources:
            packed = ops.pack_codes(source, packed_dim)
            assert_identical(packed, reference.pack_codes(codes, packed_dim))
            assert packed.shape[packed_dim] == (size + 3) // 4
            assert_layout(packed, LAYOUTS[packed_dim == -3])
            assert_identical(reference.unpack_codes(packed, shape, packed_dim), codes)


@pytest.mark.parametrize("packed_dim", [-1, -3])
def test_packed_codes_act_as_codes(packed_dim, simd_level):
    layout = LAYOUTS[packed_dim == -3]
    for channels, width in itertools.product((1, 3, 4, 17), (1, 4, 6, 19)):
        for odd in (0, 1):
            codes = random_codes(2, channels, 2, width).contiguous(memory_format=layout)
            packed = ops.pack_codes(codes, packed_dim)
            values = torch.randn(codes.shape).contiguous(memory_format=layout)
            grad = torch.randn(2, channels, 4 + odd, 2 * width + odd)
            grad = grad.contiguous(memory_format=layout)
            arguments = ((4 + odd, 2 * width + odd), *WINDOW)
            actual = ops.max_pool2d_backward(values, packed, *arguments, packed_dim)
            assert_identical(actual, reference.max_pool2d_backward(values, codes, *arguments))
            assert_layout(actual, layout)
            arguments = ((2, width), *WINDOW)
            actual = ops.max_unpool2d_backward(grad, packed, *arguments, packed_dim)
            assert_identical(actual, reference.max_unpool2d_backward(grad, codes, *arguments))
            assert_layout(actual, layout)


@pytest.mark.parametrize("packed_dim", [-1, -3])
def test_packed_codes_of_ceil_mode(packed_dim, simd_level):
    """The last windows have one row and one column alone, and their other codes are bad."""
    layout = LAYOUTS[packed_dim == -3]
    x = special_values((2, 5, 7, 9), torch.float32, layout)
    codes = fastseg.max_pool2d(x, 2, ceil_mode=True)[1]
    grad = torch.randn(codes.shape)
    packed = ops.pack_codes(codes, packed_dim)
    actual = ops.max_pool2d_backward(grad, packed, (7, 9), *WINDOW, packed_dim)
    assert_identical(actual, reference.max_pool2d_backward(grad, codes, (7, 9), *WINDOW))
    bad = codes.clone()
    bad[1, 2, 3, 4] = 1
    with pytest.raises(RuntimeError, match="max_pool2d_backward: indices hold a code that lies"):
        ops.max_pool2d_backward(grad, ops.pack_codes(bad, packed_dim), (7, 9), *WINDOW, packed_dim)
