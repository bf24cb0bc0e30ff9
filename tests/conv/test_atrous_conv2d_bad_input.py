"""Bad arguments of the convolutions: an error that names the argument, eager and in tracing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastseg

ops = torch.ops.fastseg
HUGE = 2**40
GEOMETRY = ((1, 1), (1, 1), (1, 1), 1)


def zeros(*shape, dtype=torch.float32, device=None):
    return torch.zeros(shape, dtype=dtype, device=device)


def conv(x=(1, 3, 8, 9), weight=(4, 3, 3, 3), bias=None, **options):
    x, weight = (t if isinstance(t, torch.Tensor) else zeros(*t) for t in (x, weight))
    options = {k: zeros(*v) if k in VECTORS else v for k, v in options.items()}
    return fastseg.atrous_conv2d(x, weight, bias, **options)


VECTORS = ("scale", "shift", "residual")
CALLS = {
    "x of rank 0": (lambda: conv(x=()), "x must have the shape .N, Ci, H, W."),
    "x of rank 2": (lambda: conv(x=(8, 9)), "x must have the shape .N, Ci, H, W."),
    "x of rank 5": (lambda: conv(x=(1, 1, 3, 8, 9)), "x must have the shape"),
    "weight of rank 3": (lambda: conv(weight=(4, 3, 3)), "weight must .*Co, Ci / groups, kh, kw"),
    "weight of rank 2": (lambda: conv(weight=(4, 3)), "weight must .*Co, Ci / groups, kh, kw"),
    "weight of rank 5": (lambda: conv(weight=(4, 3, 3, 3, 3)), "weight must .*Co, Ci / groups"),
    "fewer channels": (lambda: conv(weight=(4, 2, 3, 3)), "x must have weight's 2 . 1 input"),
    "more channels": (lambda: conv(weight=(4, 4, 3, 3)), "x must have weight's 4 . 1 input"),
    "channels of groups": (lambda: conv(groups=2), "x must have weight's 3 . 2 input"),
    "groups of outputs": (lambda: conv(weight=(4, 1, 3, 3), groups=3), "groups must divide .* 4"),
    "groups 0": (lambda: conv(groups=0), "groups must"),
    "groups negative": (lambda: conv(groups=-1), "groups must"),
    "even kernel": (lambda: conv(weight=(4, 3, 2, 3)), "weight must have an odd kernel"),
    "even width": (lambda: conv(weight=(4, 3, 3, 4)), "weight must have an odd kernel"),
    "no kernel": (lambda: conv(weight=(4, 3, 0, 3)), "weight must have an odd kernel"),
    "stride 0": (lambda: conv(stride=0), "stride must be at least 1"),
    "stride negative": (lambda: conv(stride=(1, -2)), "stride must be at least 1"),
    "stride of three": (lambda: conv(stride=(1, 1, 1)), "stride must be one integer or two"),
    "stride of none": (lambda: conv(stride=()), "stride must be one integer or two"),
    "huge stride": (lambda: conv(stride=HUGE), "stride must be .* below 2.30"),
    "dilation 0": (lambda: conv(dilation=0), "dilation must be at least 1"),
    "dilation negative": (lambda: conv(dilation=(-1, 1)), "dilation must be at least 1"),
    "dilation of three": (lambda: conv(dilation=(1, 1, 1)), "dilation must be one integer or two"),
    "huge dilation": (lambda: conv(dilation=HUGE), "dilation must be .* below 2.30"),
    "padding negative": (lambda: conv(padding=-1), "padding must not be negative"),
    "padding too large": (lambda: conv(padding=3), "padding must not be larger than .*= .2, 2."),
    "padding too wide": (lambda: conv(padding=(4, 5), dilation=2), "padding must not be larger"),
    "padding of 1x1": (lambda: conv(weight=(4, 3, 1, 1), padding=1), "padding must not be larger"),
    "huge padding": (lambda: conv(padding=HUGE), "padding must not be larger"),
    "padding of three": (lambda: conv(padding=(1, 1, 1)), "padding must be one integer or two"),
    "padding by a name": (lambda: conv(padding="full"), 'padding must be "same", "valid" or'),
    "kernel larger than x": (
        lambda: conv(weight=(4, 3, 9, 9), padding=0),
        "x of 8 x 9 is too small for a kernel of",
    ),
    "dilated kernel larger than x": (
        lambda: conv(padding=(2, 4), dilation=6),
        "x of 8 x 9 is too small for .* dilation .6, 6.",
    ),
    "empty rows": (lambda: conv(x=(1, 3, 0, 9), padding=0), "x of 0 x 9 is too small"),
    "bias too long": (lambda: conv(bias=zeros(5)), "bias must have the shape .Co,. = .4,., got"),
    "bias of one": (lambda: conv(bias=zeros(1)), "bias must have the shape .Co,."),
    "scale of x's channels": (lambda: conv(scale=(3,)), "scale must have the shape .Co,."),
    "scale of rank 0": (lambda: conv(scale=()), "scale must have the shape .Co,."),
    "shift of rank 2": (lambda: conv(shift=(4, 1)), "shift must have the shape .Co,."),
    "shift of rank 4": (lambda: conv(shift=(1, 4, 1, 1)), "shift must have the shape .Co,."),
    "residual like x": (lambda: conv(residual=(1, 3, 8, 9)), "residual must have the output's"),
    "residual of one pixel": (
        lambda: conv(residual=(1, 4, 1, 1)),
        "residual must have the output's .*1, 4, 8, 9",
    ),
    "residual of rank 3": (lambda: conv(residual=(4, 8, 9)), "residual must have the output's"),
    "residual before the stride": (
        lambda: conv(stride=2, residual=(1, 4, 8, 9)),
        "residual must .*1, 4, 4, 5",
    ),
    "unknown activation": (lambda: conv(activation="tanh"), "activation must be one of .*'tanh'"),
    "activation in capitals": (lambda: conv(activation="ReLU"), "activation must be one of"),
}

INPUT_GRAD = {
    "grad of rank 3": (((4, 8, 9), (4, 3, 3, 3), (8, 9)), "grad must be 4-D"),
    "weight of rank 3": (((1, 4, 8, 9), (4, 3, 3), (8, 9)), "weight must be 4-D"),
    "other channels": (((1, 3, 8, 9), (4, 3, 3, 3), (8, 9)), "grad must have weight's 4 output"),
    "other size": (((1, 4, 8, 8), (4, 3, 3, 3), (8, 9)), "grad must be of .8, 9. pixels for"),
    "even kernel": (((1, 4, 8, 9), (4, 3, 2, 3), (8, 9)), "weight must have an odd kernel"),
}
WEIGHT_GRAD = {
    "x of rank 3": (((3, 8, 9), (1, 4, 8, 9), (3, 3)), "x must be 4-D"),
    "grad of rank 5": (((1, 3, 8, 9), (1, 1, 4, 8, 9), (3, 3)), "grad must be 4-D"),
    "other batch": (((1, 3, 8, 9), (2, 4, 8, 9), (3, 3)), "grad must have x's batch size 1"),
    "other size": (((1, 3, 8, 9), (1, 4, 7, 9), (3, 3)), "grad must be of .8, 9. pixels for"),
    "even kernel": (((1, 3, 8, 9), (1, 4, 8, 9), (3, 2)), "odd kernel"),
}
GEOMETRIES = {
    "stride 0": (((1, 0), (1, 1), (1, 1), 1), "stride must be at least 1"),
    "dilation 0": (((1, 1), (1, 1), (0, 1), 1), "dilation must be at least 1"),
    "padding too large": (((1, 1), (3, 1), (1, 1), 1), "padding must not be larger"),
    "padding negative": (((1, 1), (1, -1), (1, 1), 1), "padding must not be negative"),
    "groups 0": (((1, 1), (1, 1), (1, 1), 0), "groups must be at least 1"),
    "groups of outputs": (((1, 1), (1, 1), (1, 1), 3), "groups must divide .*4"),
}


@pytest.fixture(params=["eager", "fake"])
def mode(request):
    """Eager, and the fakes that torch.compile and torch.export trace with."""
    if request.param == "eager":
        yield
    else:
        with FakeTensorMode():
            yield


def refused(call, pattern):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert re.search(pattern, str(caught.value), re.S), str(caught.value)
    assert "fastseg::" in str(caught.value)


@pytest.mark.parametrize("name", CALLS)
def test_atrous_conv2d(name, mode):
    refused(*CALLS[name])


@pytest.mark.parametrize("name", INPUT_GRAD)
def test_input_grad(name, mode):
    (grad, weight, size), pattern = INPUT_GRAD[name]
    refused(
        lambda: ops.atrous_conv2d_input_grad(zeros(*grad), zeros(*weight), size, *GEOMETRY), pattern
    )


@pytest.mark.parametrize("name", WEIGHT_GRAD)
def test_weight_grad(name, mode):
    (x, grad, kernel), pattern = WEIGHT_GRAD[name]
    refused(
        lambda: ops.atrous_conv2d_weight_grad(zeros(*x), zeros(*grad), kernel, *GEOMETRY), pattern
    )


@pytest.mark.parametrize("name", GEOMETRIES)
def test_geometry_of_the_gradients(name, mode):
    geometry, pattern = GEOMETRIES[name]
    x, grad, weight = zeros(1, 3, 8, 9), zeros(1, 4, 8, 9), zeros(4, 3, 3, 3)
    refused(lambda: ops.atrous_conv2d_input_grad(grad, weight, (8, 9), *geometry), pattern)
    refused(lambda: ops.atrous_conv2d_weight_grad(x, grad, (3, 3), *geometry), pattern)


BAD_DTYPES = (torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn)


@pytest.mark.parametrize("dtype", BAD_DTYPES, ids=str)
def test_dtypes(dtype, mode):
    x, weight, vector = zeros(1, 3, 8, 9), zeros(4, 3, 3, 3), zeros(4)
    floats = "must be float32, float64, float16 or bfloat16"
    refused(lambda: conv(x.to(dtype), weight.to(dtype)), f"x {floats}, got {dtype}")
    refused(lambda: conv(x, weight.to(dtype)), "weight must have x's dtype torch.float32")
    refused(lambda: conv(x, weight, vector.to(dtype)), f"bias {floats}, got {dtype}")
    for name in ("scale", "shift"):
        call = {name: vector.to(dtype)}
        refused(lambda c=call: fastseg.atrous_conv2d(x, weight, **c), f"{name} {floats}")
    grad = zeros(1, 4, 8, 9)
    refused(
        lambda: ops.atrous_conv2d_input_grad(grad.to(dtype), weight, (8, 9), *GEOMETRY),
        f"grad {floats}",
    )
    refused(
        lambda: ops.atrous_conv2d_weight_grad(x.to(dtype), grad, (3, 3), *GEOMETRY), f"x {floats}"
    )


@pytest.mark.parametrize("other", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_mixed_dtypes(other, mode):
    x, weight, grad = zeros(1, 3, 8, 9), zeros(4, 3, 3, 3), zeros(1, 4, 8, 9)
    refused(lambda: conv(x, weight.to(other)), "weight must have x's dtype torch.float32, got")
    refused(
        lambda: fastseg.atrous_conv2d(x, weight, residual=grad.to(other)),
        "residual must have x's dtype torch.float32",
    )
    refused(
        lambda: ops.atrous_conv2d_input_grad(grad.to(other), weight, (8, 9), *GEOMETRY),
        "weight must have grad's dtype",
    )
    refused(
        lambda: ops.atrous_conv2d_weight_grad(x, grad.to(other), (3, 3), *GEOMETRY),
        "grad must have x's dtype",
    )


@pytest.mark.parametrize("devices", [("cpu", "meta"), ("meta", "cpu")], ids=str)
def test_two_devices(devices):
    one, other = devices
    x, weight = zeros(1, 3, 8, 9, device=one), zeros(4, 3, 3, 3, device=one)
    elsewhere = zeros(4, 3, 3, 3, device=other)
    refused(lambda: conv(x, elsewhere), "x and weight must be on one device")
    for name in ("bias", "scale", "shift"):
        call = {name: zeros(4, device=other)}
        refused(
            lambda c=call: fastseg.atrous_conv2d(x, weight, **c),
            f"x and {name} must be on one device, got {one} and {other}",
        )
    residual = zeros(1, 4, 8, 9, device=other)
    refused(
        lambda: fastseg.atrous_conv2d(x, weight, residual=residual),
        "x and residual must be on one device",
    )
    refused(
        lambda: ops.atrous_conv2d_input_grad(residual, weight, (8, 9), *GEOMETRY),
        "grad and weight must be on one device",
    )
    refused(
        lambda: ops.atrous_conv2d_weight_grad(x, residual, (3, 3), *GEOMETRY),
        "x and grad must be on one device",
    )


@pytest.mark.parametrize("value", [2.5, None, "2"], ids=repr)
@pytest.mark.parametrize("name", ["stride", "dilation", "groups"])
def test_arguments_that_are_no_integers(name, value):
    with pytest.raises((RuntimeError, TypeError)):
        conv(**{name: value})


def test_a_stride_that_is_no_integer():
    with pytest.raises(TypeError, match=r"stride must be one integer or two, got 1\.5"):
        conv(stride=1.5)


def test_integers_of_numpy():
    assert conv(stride=np.int64(2), padding=np.int32(1)).shape == (1, 4, 4, 5)
