"""Bad arguments: an error that names the op and the argument, from the kernels and from tracing."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode

import fastseg

ops = torch.ops.fastseg
WINDOW = ((2, 2), (2, 2), (0, 0), (1, 1))
HUGE = 2**40


def image(*shape, dtype=torch.float32, device=None):
    return torch.zeros(shape or (1, 3, 8, 8), dtype=dtype, device=device)


def pool(*args, x=None, **options):
    return fastseg.max_pool2d(image() if x is None else x, *args, **options)


def norm(scale, shift=None, x=None):
    shift = scale if shift is None else shift
    return fastseg.batch_norm_relu_max_pool2d(image() if x is None else x, scale, shift, 2)


def unpool(values=(1, 3, 4, 4), indices=None, args=(2,), dtype=torch.uint8, **options):
    indices = image(*(values if indices is None else indices), dtype=dtype)
    return fastseg.max_unpool2d(image(*values), indices, *args, **options)


def codes(*shape):
    return image(*shape, dtype=torch.uint8)


# The windows, which all ops check alike: arguments of max_pool2d and what the error must say.
WINDOWS = {
    "kernel 0": ((0,), "kernel_size must be positive"),
    "kernel negative": (((2, -1),), "kernel_size must be positive"),
    "kernel of three": (((2, 2, 2),), "kernel_size"),
    "kernel of none": (((),), "kernel_size"),
    "257 taps": (((1, 257),), "kernel_size .* more than the 256 positions"),
    "289 taps": ((17,), "kernel_size .* more than the 256 positions"),
    "huge kernel": ((HUGE,), "kernel_size"),
    "kernel whose area overflows": (((2**32, 2**32),), "kernel_size"),
    "stride 0": ((2, 0), "stride must be positive"),
    "stride negative": ((2, (1, -2)), "stride must be positive"),
    "stride of three": ((2, (1, 2, 3)), "stride"),
    "padding negative": ((2, 2, -1), "padding must not be negative"),
    "padding too large": ((2, 2, 2), "padding must be at most half"),
    "padding too large in one": ((3, 2, (1, 2)), "padding must be at most half"),
    "padding of three": ((2, 2, (0, 0, 0)), "padding"),
}
POOLS = {
    **WINDOWS,
    "huge padding": ((2, 2, HUGE), "padding"),
    "dilation 0": ((2, 2, 0, 0), "dilation must be positive"),
    "dilation negative": ((2, 2, 0, -3), "dilation must be positive"),
    "dilation of three": ((2, 2, 0, (1, 1, 1)), "dilation"),
    "huge dilation": ((2, 2, 0, HUGE), "dilation|too small"),
    "window larger than x": ((9,), "x of 8 x 8 is too small for kernel_size"),
    "dilated window larger than x": ((3, 1, 0, 4), "x of 8 x 8 is too small .* dilation"),
}


@pytest.fixture(params=["eager", "fake"])
def mode(request):
    """Eager, and the fakes that torch.compile and torch.export trace with."""
    if request.param == "eager":
        yield
    else:
        with FakeTensorMode():
            yield


def refused(call, pattern, errors=(RuntimeError, TypeError)):
    with pytest.raises(errors) as caught:
        call()
    assert re.search(pattern, str(caught.value), re.S), str(caught.value)


@pytest.mark.parametrize("name", POOLS)
def test_windows_of_max_pool2d(name, mode):
    args, pattern = POOLS[name]
    refused(lambda: pool(*args), pattern)
    x = image(dtype=torch.int32)  # the reference's
    refused(lambda: pool(*args, x=x), pattern)
    scale = image(3)
    refused(lambda: fastseg.batch_norm_relu_max_pool2d(image(), scale, scale, *args), pattern)


@pytest.mark.parametrize("name", WINDOWS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_windows_of_max_unpool2d(name, dtype, mode):
    args, pattern = WINDOWS[name]
    indices = image(1, 3, 4, 4, dtype=dtype)
    args = (
        (*args, 0)[:3] if len(args) == 3 else (*args, (), 0)[:3] if len(args) == 1 else (*args, 0)
    )
    refused(lambda: ops.max_unpool2d(image(1, 3, 4, 4), indices, (8, 8), *args), pattern)


@pytest.mark.parametrize("name", POOLS)
def test_windows_of_the_conversions(name, mode):
    args, pattern = POOLS[name]
    if "larger than x" in name or name == "huge dilation":
        pytest.skip("no window is counted here")
    refused(lambda: fastseg.codes_to_indices(codes(1, 3, 4, 4), (8, 8), *args), pattern)
    indices = image(1, 3, 4, 4, dtype=torch.int64)
    refused(lambda: fastseg.indices_to_codes(indices, (8, 8), *args), pattern)


SHAPES = {
    "rank 0": ((), "x must be .*C, H, W"),
    "rank 1": ((8,), "x must be .*C, H, W"),
    "rank 2": ((8, 8), "x must be .*C, H, W"),
    "rank 5": ((1, 1, 3, 8, 8), "x must be .*C, H, W"),
    "no channels": ((1, 0, 8, 8), "x must not be empty"),
    "no channels of 3-D": ((0, 8, 8), "x must not be empty"),
    "no rows": ((1, 3, 0, 8), "x must not be empty"),
    "no columns": ((1, 3, 8, 0), "x must not be empty"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_x(name, mode):
    shape, pattern = SHAPES[name]
    for dtype in (torch.float32, torch.int64):
        refused(lambda d=dtype: fastseg.max_pool2d(torch.zeros(shape, dtype=d), 2), pattern)
    if len(shape) > 2:
        scale = image(shape[-3]) if shape[-3] else torch.zeros(0)
        refused(lambda: norm(scale, x=torch.zeros(shape)), pattern)


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str)
def test_dtypes_that_cannot_be_pooled(dtype):
    refused(lambda: pool(2, x=image(dtype=dtype)), f"x must be .*{dtype}")
    refused(lambda: norm(image(3), x=image(dtype=dtype)), "x must be float32, float64")


CALLS = {
    "scale too short": (lambda: norm(image(2), image(3)), "scale must be .C,"),
    "shift too long": (lambda: norm(image(3), image(4)), "shift must be .C,"),
    "scale of rank 2": (lambda: norm(image(3, 1), image(3)), "scale must be .C,"),
    "scale of rank 4": (lambda: norm(image(1, 3, 1, 1)), "scale must be .C,"),
    "scale of rank 0": (lambda: norm(torch.zeros(()), image(3)), "scale must be .C,"),
    "values of rank 2": (lambda: unpool((4, 4)), "values must be .*C, H, W"),
    "values of rank 5": (lambda: unpool((1, 1, 3, 4, 4)), "values must be .*C, H, W"),
    "no channels": (lambda: unpool((1, 0, 4, 4)), "values must not be empty"),
    "no rows": (lambda: unpool((1, 3, 0, 4), output_size=(1, 8)), "values must not be empty"),
    "fewer indices": (lambda: unpool(indices=(1, 3, 4, 3)), "indices must have shape"),
    "more indices": (lambda: unpool(indices=(2, 3, 4, 4)), "indices must have shape"),
    "indices without N": (lambda: unpool(indices=(3, 4, 4)), "indices must have shape"),
    "int64 of another shape": (
        lambda: unpool(indices=(1, 3, 4, 5), dtype=torch.int64),
        "indices must have shape",
    ),
    "int32 indices": (lambda: unpool(dtype=torch.int32), "indices must be uint8 .* int64"),
    "float indices": (lambda: unpool(dtype=torch.float32), "indices must be uint8 .* int64"),
    "int8 codes": (lambda: unpool(dtype=torch.int8), "indices must be uint8 .* int64"),
    "codes as indices": (
        lambda: fastseg.indices_to_codes(codes(1, 3, 4, 4), (8, 8), 2),
        "expected torch.int64",
    ),
    "indices as codes": (
        lambda: fastseg.codes_to_indices(image(1, 3, 4, 4), (8, 8), 2),
        "expected torch.uint8",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_tensors_that_do_not_fit(name, mode):
    refused(*CALLS[name])


EAGER_CALLS = {
    "scale of integers": (lambda: norm(image(3).long()), "scale must be float32"),
    "shift of bool": (lambda: norm(image(3), image(3).bool()), "shift must be float32"),
    "integer values": (
        lambda: fastseg.max_unpool2d(image(1, 3, 4, 4).int(), codes(1, 3, 4, 4), 2),
        "values must be float32",
    ),
    "complex values": (
        lambda: fastseg.max_unpool2d(image(1, 3, 4, 4).cfloat(), codes(1, 3, 4, 4), 2),
        "values must be float32",
    ),
    "plane far too small": (
        lambda: ops.max_unpool2d(image(1, 3, 4, 4), codes(1, 3, 4, 4), (2, 8), (2, 2)),
        "height 2 ends before the last of 4 windows",
    ),
    "plane too narrow": (
        lambda: ops.max_unpool2d(image(1, 3, 4, 4), codes(1, 3, 4, 4), (8, 6), (2, 2)),
        "width 6 ends before the last of 4 windows",
    ),
    "empty plane": (
        lambda: ops.max_unpool2d(image(1, 3, 4, 4), codes(1, 3, 4, 4), (0, 8), (2, 2)),
        "plane must not be empty",
    ),
    "negative plane": (
        lambda: ops.max_pool2d_backward(image(1, 3, 4, 4), codes(1, 3, 4, 4), (-8, 8), *WINDOW),
        "plane must not be empty",
    ),
    "huge plane": (
        lambda: ops.max_unpool2d(image(1, 3, 4, 4), codes(1, 3, 4, 4), (HUGE, HUGE), (2, 2)),
        "",
    ),
    "plane whose size overflows": (
        lambda: ops.max_unpool2d(image(1, 3, 4, 4), codes(1, 3, 4, 4), (2**62, 2**62), (2, 2)),
        "",
    ),
    "negative pooled size": (
        lambda: ops.max_unpool2d_backward(image(), codes(1, 3, 4, 4), (-4, 4), *WINDOW),
        "indices must have shape",
    ),
    "largest padding": (lambda: pool(2, 2, 2**63 - 1), "padding must be"),
    "padding whose double overflows": (lambda: pool(2, 2, 2**62), "padding must be"),
    "padding beyond int": (  # half of the dilated window
        lambda: pool((1, 256), 1, (0, (255 * (2**30 - 1) + 1) // 2), (1, 2**30 - 1)),
        "padding must be",
    ),
    "codes of integers": (
        lambda: ops.max_pool2d_backward(
            image(1, 3, 4, 4), image(1, 3, 4, 4).long(), (8, 8), *WINDOW
        ),
        "codes must be uint8",
    ),
    # Packed codes.
    "packed_dim 1": (lambda: ops.pack_codes(codes(1, 3, 4, 4), 1), "packed_dim must be -1"),
    "packed_dim 0": (lambda: ops.pack_codes(codes(1, 3, 4, 4), 0), "packed_dim must be -1"),
    "packed_dim -2": (lambda: ops.pack_codes(codes(1, 3, 4, 4), -2), "packed_dim must be -1"),
    "packed_dim -3 of 3-D": (lambda: ops.pack_codes(codes(3, 4, 4), -3), "packed_dim must be -1"),
    "huge packed_dim": (lambda: ops.pack_codes(codes(3, 4, 4), HUGE), "packed_dim must be -1"),
    "pack of rank 2": (lambda: ops.pack_codes(codes(4, 4), -1), "codes must be a uint8 tensor"),
    "pack of int64": (lambda: ops.pack_codes(image().long(), -1), "codes must be a uint8 tensor"),
    "packed_dim of backward": (
        lambda: ops.max_pool2d_backward(image(1, 3, 4, 4), codes(1, 3, 4, 1), (8, 8), *WINDOW, 2),
        "packed_dim must be 0, -1",
    ),
    "packed codes of another width": (
        lambda: ops.max_pool2d_backward(image(1, 3, 4, 4), codes(1, 3, 4, 2), (8, 8), *WINDOW, -1),
        "indices must have shape .1, 3, 4, 1.",
    ),
    "packed codes along another dimension": (
        lambda: ops.max_unpool2d_backward(image(), codes(1, 3, 4, 1), (4, 4), *WINDOW, -3),
        "indices must have shape .1, 1, 4, 4.",
    ),
    "packed codes of other windows": (
        lambda: ops.max_pool2d_backward(
            image(1, 3, 4, 4), codes(1, 3, 4, 1), (9, 9), (3, 3), *WINDOW[1:], -1
        ),
        "packed codes belong to 2x2 windows",
    ),
    "packed indices": (
        lambda: ops.max_unpool2d_backward(image(), image(1, 3, 4, 1).long(), (4, 4), *WINDOW, -1),
        "packed codes belong to 2x2 windows",
    ),
}


@pytest.mark.parametrize("name", EAGER_CALLS)
def test_what_only_the_kernels_check(name):
    refused(*EAGER_CALLS[name])


@pytest.mark.parametrize("devices", [("cpu", "meta"), ("meta", "cpu")], ids=str)
def test_tensors_of_two_devices(devices):
    one, other = devices
    x, scale, elsewhere = image(device=one), image(3, device=one), image(3, device=other)
    refused(lambda: norm(elsewhere, x=x), "x and scale must be on one device")
    refused(lambda: norm(scale, elsewhere, x), "x and shift must be on one device")
    positions = image(dtype=torch.uint8, device=other)
    refused(lambda: fastseg.max_unpool2d(x, positions, 2), "values and indices must be on one")


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_output_sizes_of_another_length(length):
    values = image(1, 3, 4, 4)
    with pytest.raises(ValueError, match="output_size"):
        F.max_unpool2d(values, values.long(), 2, output_size=(8,) * length)
    with pytest.raises(ValueError, match="output_size must be"):
        fastseg.max_unpool2d(values, values.byte(), 2, output_size=(8,) * length)


@pytest.mark.parametrize("size", [(6, 8), (8, 10), (HUGE, 8), (-8, 8), (0, 0)])
def test_output_sizes_out_of_range(size):
    values = image(1, 3, 4, 4)
    with pytest.raises(ValueError, match="invalid output_size"):
        F.max_unpool2d(values, values.long(), 2, output_size=size)
    for positions in (values.long(), values.byte()):
        with pytest.raises(ValueError, match=r"output_size must be within less than a stride"):
            fastseg.max_unpool2d(values, positions, 2, output_size=size)


@pytest.mark.parametrize("kernel", [2.5, None, "2", torch.tensor(2.5)], ids=repr)
def test_windows_that_are_not_integers(kernel):
    refused(lambda: pool(kernel), "kernel_size")
