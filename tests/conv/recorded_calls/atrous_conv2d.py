"""Checks of prepared calls of atrous_conv2d: its forms, dtypes, layouts and gradients."""

from __future__ import annotations

import contextlib

import torch

import fastseg
from fastseg._core import prepared_calls
from fastseg.kernels.conv import choice
from fastseg.ops.conv import atrous_conv2d_grad as grads
from tests.conv.recorded_calls.checking import (
    BF16,
    F16,
    F32,
    LAST,
    ONE,
    SPLIT,
    SPLIT_IN,
    all_tensors,
    check,
    choose,
    compare,
    convolve,
    described,
    driver,
    pyramid,
    randn,
    tensors,
)


@check
def test_parameters_are_those_of_triton_s_launcher():
    for dtype in (F16, BF16, F32):
        for bare in (False, True):
            compare(convolve, tensors(dtype, bare=bare), ONE)


@check
def test_split_tiles_and_their_sum():
    for dtype in (BF16, F32):
        compare(convolve, tensors(dtype, **SPLIT), SPLIT_IN)
        compare(convolve, tensors(dtype, bare=True, **SPLIT), SPLIT_IN)


@check
def test_memory_that_begins_elsewhere():
    aligned = tensors()
    compare(convolve, aligned, ONE)
    for i in range(6):
        given = list(aligned)
        t = given[i]
        given[i] = randn(*t.shape, dtype=t.dtype, skipped=1)
        before = len(prepared_calls.CALLS)
        driver.launches()
        first, by_triton = described(given, convolve(given))
        assert all(by_triton), "prepared for another alignment"
        assert len(prepared_calls.CALLS) == before + 2  # as it was given, and with its geometry
        second, by_triton = described(given, convolve(given))
        assert not any(by_triton)
        assert first == second
    assert prepared_calls.run("atrous_conv2d", aligned, (1, "same", 4, 1, "relu")) is not None


@check
def test_channels_that_are_no_multiples_of_16():
    for channels, outputs in ((1, 40), (33, 17), (48, 1), (16, 16)):
        compare(convolve, tensors(channels=channels, outputs=outputs), ONE)


@check
def test_layouts():
    given = tensors(layout=torch.contiguous_format)
    prepared_calls.forget()
    first = convolve(given)
    driver.launches()
    second = convolve(given)
    (launch,) = driver.launches()
    assert not launch.by_triton
    for y in (first, second):
        assert y.is_contiguous()
        assert y.dtype == BF16
    given[1] = given[1].contiguous()
    given[5] = given[5].contiguous()
    convolve(given)
    driver.launches()
    convolve(given)
    (launch,) = driver.launches()
    assert not launch.by_triton


@contextlib.contextmanager
def torch_s_convolution():
    choose(choice.TORCH)
    try:
        yield
    finally:
        choose(choice.LIVE_TAPS)


@check
def test_torch_s_convolution_and_the_kernel_that_follows_it():
    for layout in (LAST, torch.contiguous_format):
        given = tensors(layout=layout)
        with torch_s_convolution():
            compare(convolve, given, {"apply_epilogue_kernel"})
            y = convolve(given)
            driver.launches()
        assert y.is_contiguous(memory_format=layout)
        assert not prepared_calls.find("atrous_conv2d", given, (1, "same", 5, 1, "relu"))


@check
def test_torch_s_convolution_alone():
    given = tensors(bare=True)
    prepared_calls.forget()
    with torch_s_convolution():
        first = convolve(given, activation="")
        assert len(prepared_calls.CALLS) == 2
        second = convolve(given, activation="")
    assert torch.equal(first, second)
    assert torch.equal(first, torch.conv2d(*given[:2], None, 1, 4, 4))
    assert not driver.launches()


@check
def test_few_outputs():
    choose(choice.FEW_OUTPUTS)
    try:
        for bare in (False, True):
            compare(convolve, tensors(outputs=5, bare=bare), {"add_taps_kernel"})
        x, branches = randn(1, 64, 13, 13), [b._replace(scale=None) for b in pyramid(outputs=5)]
        given = all_tensors(x, *branches)
        compare(lambda _: fastseg.aspp(x, branches, activation=None), given, {"add_taps_kernel"})
    finally:
        choose(choice.LIVE_TAPS)


@check
def test_joined_weights():
    choose(choice.JOINED)
    try:
        x, branches = randn(1, 64, 13, 13), [b._replace(scale=None) for b in pyramid()]
        given = all_tensors(x, *branches)
        compare(lambda _: fastseg.aspp(x, branches, activation=None), given, ONE)
    finally:
        choose(choice.LIVE_TAPS)


@check
def test_every_call_reads_the_tensors_that_it_is_given():
    given, others = tensors(), tensors()
    compare(convolve, given, ONE)
    both, _ = described(others, convolve(others))
    again, _ = described(given, convolve(given))
    assert both == again
    given[1].data = others[1]
    swapped, by_triton = described(others[:2], convolve(given))
    assert not any(by_triton)
    assert any(word == ("tensor 1", 0) for word in swapped[0][1])


@check
def test_other_kinds_are_not_confused():
    given = tensors()
    compare(convolve, given, ONE)
    others = [
        tensors(F16),
        tensors(F32),
        tensors(channels=64),
        tensors(outputs=41),
        tensors(bare=True),
        [*given[:3], None, *given[4:]],
        [*given[:3], given[3].to(BF16), *given[4:]],
        [given[0], given[1].contiguous(), *given[2:]],
        [given[0][:1], *given[1:5], given[5][:1]],
    ]
    for other in others:
        driver.launches()
        convolve(other)
        assert all(one.by_triton for one in driver.launches())
    for options in ({"dilation": 3}, {"activation": ""}, {"stride": 2}, {"padding": 3}):
        driver.launches()
        bare = [*given[:5], None]
        convolve(bare, **options)
        assert all(one.by_triton for one in driver.launches()), options
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    try:
        driver.launches()
        convolve(others[1])
        assert all(one.by_triton for one in driver.launches())
    finally:
        torch.backends.cudnn.conv.fp32_precision = "tf32"


@check
def test_an_argument_given_twice():
    """Which of them a kernel reads is not known from the addresses."""
    x, weight, _, scale, _, _ = tensors(outputs=48)
    prepared_calls.forget()
    same = [x, weight, None, scale, scale, None]
    for _ in range(2):
        driver.launches()
        convolve(same)
        assert all(one.by_triton for one in driver.launches())
    given = [x, weight, None, scale, scale.clone(), None]
    compare(convolve, given, ONE)
    for again in (given, same):
        assert not any(described(again, convolve(again))[1])


@check
def test_the_gradient_of_the_input():
    def run(given):
        return grads._triton_input_grad(*given, (13, 13), (1, 1), (4, 4), (4, 4), 1)

    for dtype in (BF16, F32):
        grad = randn(2, 40, 13, 13, dtype=dtype)
        compare(run, [grad, randn(40, 48, 3, 3, dtype=dtype)], ONE)


@check
def test_no_gradient_is_lost():
    """Autograd's way is the ordinary one; its op finds what is prepared."""
    given = tensors(bare=True)
    compare(convolve, given, ONE)
    given[1].requires_grad_()
    y = convolve(given, activation="")
    assert y.requires_grad
    y = convolve(given, activation="")
    assert y.requires_grad
    with torch.no_grad():
        assert not convolve(given).requires_grad
    with torch.inference_mode():
        assert convolve(given).is_inference()
