"""The modules: signatures, state_dict, copies, training and evaluation."""

from __future__ import annotations

import copy
import inspect
import io
import pickle

import pytest
import torch
from torch import nn

import fastseg
from tests.pool.pool_cases import LAYOUTS, assert_identical, assert_layout

each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))


@pytest.mark.parametrize("name", ["MaxPool2d", "MaxUnpool2d"])
def test_signatures_are_torchs(name):
    ours, theirs = getattr(fastseg.nn, name), getattr(nn, name)
    assert issubclass(ours, theirs)
    assert inspect.signature(ours) == inspect.signature(theirs)


def test_forwards_take_torchs_keywords():
    x = torch.randn(1, 2, 4, 6)
    values, codes = fastseg.nn.MaxPool2d(2, return_indices=True)(input=x)
    size = x.shape[-2:]
    unpooled = fastseg.nn.MaxUnpool2d(2)(input=values, indices=codes, output_size=size)
    assert_identical(unpooled, fastseg.max_unpool2d(values, codes, 2, output_size=size))


@each_layout
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
        {"kernel_size": (2, 3), "stride": (2, 1), "ceil_mode": True},
    ],
    ids=str,
)
def test_max_pool2d(options, layout):
    x = torch.randn(2, 3, 9, 11).contiguous(memory_format=layout)
    expected, indices = nn.MaxPool2d(**options, return_indices=True)(x)
    assert_identical(fastseg.nn.MaxPool2d(**options)(x), expected)
    values, codes = fastseg.nn.MaxPool2d(**options, return_indices=True)(x)
    assert_identical(values, expected)
    options.pop("ceil_mode", None)
    assert_identical(fastseg.codes_to_indices(codes, x.shape, **options), indices)


@pytest.mark.parametrize("size", [(8, 10), (9, 11)])
def test_max_unpool2d(size):
    x = torch.randn(2, 3, *size)
    values, indices = nn.MaxPool2d(2, return_indices=True)(x)
    _, codes = fastseg.nn.MaxPool2d(2, return_indices=True)(x)
    expected = nn.MaxUnpool2d(2)(values, indices, output_size=x.shape)
    unpool = fastseg.nn.MaxUnpool2d(2)
    for positions in (indices, codes):
        assert_identical(unpool(values, positions, output_size=x.shape), expected)
        assert_identical(unpool(values, positions, x.shape[-2:]), expected)
    assert unpool(values, codes).shape == (2, 3, 8, 10)
    centres = torch.full_like(codes, 4)
    assert fastseg.nn.MaxUnpool2d(3, 2, 1)(values, centres).shape == (2, 3, 7, 9)


# BatchNormReLUMaxPool2d.


def trained(**options):
    """A module with running statistics of its own, and torch's three with the same."""
    fused = fastseg.nn.BatchNormReLUMaxPool2d(5, **options)
    nn.init.normal_(fused.weight)
    nn.init.normal_(fused.bias)
    plain = nn.BatchNorm2d(5, eps=fused.eps, momentum=fused.momentum)
    plain.load_state_dict(fused.state_dict())
    for _ in range(3):
        x = torch.randn(2, 5, 6, 8) * 2 + 1
        fused(x), plain(x)
    return fused, plain


def chain(plain, x, *window):
    return nn.functional.max_pool2d(plain(x).relu(), *window, return_indices=True)


@each_layout
@pytest.mark.parametrize("options", [{}, {"kernel_size": 3, "stride": 2, "padding": 1}], ids=str)
def test_training_is_the_three_in_a_row(options, layout):
    fused, plain = trained(**options)
    window = (fused.kernel_size, fused.stride, fused.padding)
    for leaf in (*fused.parameters(), *plain.parameters()):
        leaf.grad = None
    x = torch.randn(3, 5, 8, 10).contiguous(memory_format=layout)
    values, codes = fused(x)
    expected, indices = chain(plain, x, *window)
    assert_identical(values, expected)
    assert_identical(fastseg.codes_to_indices(codes, x.shape, *window), indices)
    values.square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    for a, b in zip(fused.buffers(), plain.buffers(), strict=True):
        assert_identical(a, b)
    assert fused.num_batches_tracked == 4


@each_layout
def test_evaluation_is_one_pass(layout):
    fused, plain = trained()
    fused.eval(), plain.eval()
    x = torch.randn(3, 5, 8, 10).contiguous(memory_format=layout).requires_grad_()
    values, _ = fused(x)
    assert "batch_norm_relu_max_pool2d" in type(values.grad_fn).__name__
    assert_layout(values, layout)
    expected, _ = chain(plain, x, 2)
    torch.testing.assert_close(values, expected)
    grad = torch.randn_like(values)
    leaves = [x, *fused.parameters()], [x, *plain.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(values, leaves[0], grad),
        torch.autograd.grad(expected, leaves[1], grad),
        rtol=1e-5,
        atol=1e-5,
    )
    buffers = [b.clone() for b in fused.buffers()]
    fused(x)
    assert all(map(torch.equal, buffers, fused.buffers()))


def test_a_batch_norm_of_torch_can_be_loaded():
    fused, plain = trained()
    assert list(fused.state_dict()) == list(nn.BatchNorm2d(5).state_dict())
    other = fastseg.nn.BatchNormReLUMaxPool2d(5).eval()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(1, 5, 4, 4)
    assert_identical(other(x)[0], fused.eval()(x)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    fused, plain = (m.eval().to(dtype) for m in trained())
    x = torch.randn(1, 5, 6, 6).to(dtype)
    values = fused(x)[0]
    assert values.dtype == dtype
    tolerance = {"rtol": 0.05, "atol": 0.05} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(values, chain(plain, x, 2)[0], **tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_evaluation_folds_in_float32_as_torch_computes(dtype):
    """The square root of a small variance, and a mean beside it, have few digits in 16 bits."""
    fused, plain = (m.eval() for m in trained())
    for m in (fused, plain):
        m.running_var.fill_(3e-6)
        m.running_mean.fill_(0.7)
        m.to(dtype)
    x = plain.running_mean.view(-1, 1, 1) + (torch.randn(2, 5, 8, 8) * 3e-3).to(dtype)
    exact, _ = chain(plain.double(), x.double(), 2)
    error = (fused(x)[0].double() - exact).abs().max()
    assert error <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("mode", [True, False])
def test_without_running_statistics_the_batchs_count(mode):
    fused, plain = trained()
    for m in (fused, plain):
        m.track_running_stats, m.running_mean, m.running_var = False, None, None
        m.train(mode)
    x = torch.randn(3, 5, 8, 10)
    values, codes = fused(x)
    expected, indices = chain(plain, x, 2)
    assert_identical(values, expected)
    assert_identical(fastseg.codes_to_indices(codes, x.shape, 2), indices)


def modules():
    return [
        fastseg.nn.MaxPool2d(2, return_indices=True),
        fastseg.nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        trained(kernel_size=3, stride=2, padding=1)[0].eval(),
        trained()[0].eval(),
    ]


@pytest.mark.parametrize("number", range(4))
def test_copies_are_equal(number):
    module = modules()[number]
    x = torch.randn(1, 5, 9, 9)
    saved = io.BytesIO()
    torch.save(module, saved)
    saved.seek(0)
    copies = (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(saved, weights_only=False),
    )
    for other in copies:
        assert type(other) is type(module)
        assert repr(other) == repr(module)
        for a, b in zip(other(x), module(x), strict=True):
            assert_identical(a, b)


def test_repr_names_the_arguments():
    assert repr(fastseg.nn.MaxPool2d(3, 2, 1)).startswith("MaxPool2d(kernel_size=3, stride=2, pad")
    assert repr(fastseg.nn.MaxUnpool2d(2)).startswith("MaxUnpool2d(kernel_size=(2, 2), stride=(2,")
    text = repr(fastseg.nn.BatchNormReLUMaxPool2d(7, 3, padding=1, eps=1e-3))
    for part in ("(7, ", "eps=0.001", "momentum=0.1", "kernel_size=3, stride=None, padding=1"):
        assert part in text


def test_a_decoder_learns_through_codes():
    """An encoder and decoder step from end to end: every parameter moves."""
    encoder = nn.Conv2d(3, 8, 3, padding=1)
    block = fastseg.nn.BatchNormReLUMaxPool2d(8)
    decoder = nn.Conv2d(8, 2, 3, padding=1)
    parameters = [*encoder.parameters(), *block.parameters(), *decoder.parameters()]
    before = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    x, target = torch.randn(2, 3, 9, 11), torch.randint(0, 2, (2, 9, 11))
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        values, codes = block(encoder(x))
        y = decoder(fastseg.nn.MaxUnpool2d(2)(values, codes, x.shape[-2:]))
        loss = nn.functional.cross_entropy(y, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    # Batch norm removes what the bias before it adds.
    moved = [not torch.equal(a, b) for a, b in zip(before, parameters, strict=True)]
    assert moved[0]
    assert all(moved[2:])
