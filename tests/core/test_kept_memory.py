"""Memory of large outputs is kept for the next ones: a call takes no pages from the system."""

from __future__ import annotations

import ctypes
import gc
import io
import threading

import pytest
import torch

import fastseg
from fastseg._core import extension
from tests.conv.conv_cases import needs_kernel

resource = pytest.importorskip("resource")
pytestmark = needs_kernel("max_pool2d")

MIB = 1 << 20
PR_SET_THP_DISABLE = 41  # of Linux's prctl


def kept() -> int:
    """Bytes that are kept."""
    function = extension._cpu.fastseg_kept_memory
    function.restype = ctypes.c_int64
    return function()


@pytest.fixture(autouse=True)
def nothing_kept():
    gc.collect()
    fastseg.empty_cache()
    assert kept() == 0
    yield
    fastseg.empty_cache()


def image(layout=torch.contiguous_format, channels=64, height=120, width=160):
    return torch.randn(1, channels, height, width).contiguous(memory_format=layout)


def pooling(x):
    return lambda: fastseg.max_pool2d(x, 2)


def unpooling(x):
    values, codes = fastseg.max_pool2d(x, 2)
    return lambda: fastseg.max_unpool2d(values, codes, 2, output_size=x.shape)


def unpooling_by_indices(x):
    values, indices = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    return lambda: fastseg.max_unpool2d(values, indices, 2, output_size=x.shape)


def fused_pooling(x):
    scale, shift = torch.rand(2, x.shape[1])
    return lambda: fastseg.batch_norm_relu_max_pool2d(x, scale, shift, 2)


def pooling_backward(x):
    x.requires_grad_()
    y, _ = fastseg.max_pool2d(x, 2)
    grad = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, x, grad, retain_graph=True)


def unpooling_backward(x):
    values, codes = fastseg.max_pool2d(x, 2)
    values.requires_grad_()
    y = fastseg.max_unpool2d(values, codes, 2, output_size=x.shape)
    grad = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, values, grad, retain_graph=True)


def convolution(x):
    weight = torch.randn(64, x.shape[1], 3, 3)
    return lambda: fastseg.atrous_conv2d(x, weight, dilation=2)


def depthwise(x):
    weight = torch.randn(x.shape[1], 1, 3, 3)
    return lambda: fastseg.atrous_conv2d(x, weight, dilation=12, groups=x.shape[1])


def convolution_backward(x):
    x.requires_grad_()
    weight = torch.randn(64, x.shape[1], 3, 3, requires_grad=True)
    y = fastseg.atrous_conv2d(x, weight)
    grad = torch.ones_like(y)
    return lambda: torch.autograd.grad(y, (x, weight), grad, retain_graph=True)


def aspp(x):
    weight = torch.randn(64, x.shape[1], 3, 3)
    branches = [fastseg.ASPPBranch(weight, None, None, rate) for rate in (1, 6, 12)]
    project = fastseg.ASPPBranch(torch.randn(64, 192, 1, 1), None, None)
    return lambda: fastseg.aspp(x, branches, project)


def dense_crf(x):
    unary, photo = torch.randn(1, 21, *x.shape[2:]), torch.rand(1, 3, *x.shape[2:]) * 255
    return lambda: fastseg.dense_crf(unary, photo, iterations=2)


CALLS = [
    pooling,
    unpooling,
    unpooling_by_indices,
    fused_pooling,
    pooling_backward,
    unpooling_backward,
    convolution,
    depthwise,
    convolution_backward,
    aspp,
    dense_crf,
]


@pytest.fixture
def pages_of_4_kilobytes():
    """No large pages, so that memory that is taken from the system shows in many page faults."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is None or prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0:
        pytest.skip("needs Linux's prctl")
    yield
    prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("make", CALLS, ids=lambda f: f.__name__)
def test_a_call_takes_no_pages_from_the_system(make, layout, pages_of_4_kilobytes):
    torch.manual_seed(0)
    work = make(image(layout))
    faults = []
    for _ in range(10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        work()
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    # The smallest output alone would take 300. A busy system takes a few pages back at any time.
    assert min(faults[3:]) < 100, faults


def test_the_next_output_of_the_size_takes_it():
    unpool = unpooling(image())
    first = unpool()
    place, size = first.data_ptr(), first.nbytes
    assert kept() == 0
    del first
    assert size <= kept() <= 1.2 * size
    second = unpool()
    assert second.data_ptr() == place
    assert kept() == 0
    assert unpool().data_ptr() != place  # two that live share nothing


def test_sizes_that_differ_much_do_not_take_it():
    unpool = unpooling(image())
    unpool()
    before = kept()
    unpooling(image(height=60))()
    assert kept() >= before


def test_what_is_kept_is_bounded_and_freed_on_request():
    unpool = unpooling(image(channels=256, height=240, width=320))
    outputs = [unpool() for _ in range(20)]
    assert sum(y.nbytes for y in outputs) > 1400 * MIB
    del outputs
    assert 0 < kept() <= 1024 * MIB
    fastseg.empty_cache()
    assert kept() == 0


def test_outputs_are_tensors_as_all_others():
    unpool = unpooling(image())
    y = unpool()
    expected = y.clone()
    array = y.numpy()
    file = io.BytesIO()
    torch.save(y, file)
    assert file.tell() < 1.1 * y.nbytes
    assert torch.equal(torch.load(io.BytesIO(file.getvalue())), expected)
    y.share_memory_()
    assert torch.equal(y, expected)
    y.set_(torch.zeros(3))
    del y
    unpool()
    assert torch.equal(torch.from_numpy(array), expected)


def test_threads_do_not_share_memory():
    torch.manual_seed(0)
    problems = [unpooling(image(height=100 + 4 * i)) for i in range(4)]
    expected = [unpool() for unpool in problems]
    wrong = []

    def work(i):
        for _ in range(40):
            if not torch.equal(problems[i](), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
