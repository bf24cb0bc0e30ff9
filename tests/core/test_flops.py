"""FlopCounterMode counts for the ops what it counts for torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import fastseg
from fastseg import reference
from tests.core.op_samples import samples

ops = torch.ops.fastseg

# Of no matrix product or convolution, or of as many as the tensors' values say.
NOT_COUNTED = {
    "batch_norm_relu_max_pool2d",
    "bilateral_filter",
    "codes_to_indices",
    "confusion_matrix",
    "upsample_argmax",
    "upsample_argmax_confidence",
    "upsample_confusion_matrix",
    "distance_transform",
    "exact_gaussian_blocks",
    "dense_energy",
    "image_layout",
    "indices_to_codes",
    "lattice_mean_field",
    "max_pool2d",
    "max_pool2d_backward",
    "max_unpool2d",
    "max_unpool2d_backward",
    "mean_field",
    "mean_field_backward",
    "pack_codes",
    "permutohedral_filter",
    "permutohedral_filter_backward",
    "permutohedral_lattice",
    "pixel_adaptive_refinement",
    "pixel_adaptive_refinement_backward",
    "spatial_gaussian_filter",
    "upsample_cross_entropy",
    "upsample_cross_entropy_backward",
    "upsample_softmax_sums",
    "upsample_softmax_sums_backward",
    "winograd_conv2d_weight",
}


def counted(function, *arguments) -> int:
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


def test_every_op_is_counted_or_not_on_purpose():
    for sample in samples():
        assert (sample.op._overloadpacket in flop_registry) != (sample.name in NOT_COUNTED)


@pytest.mark.parametrize("sample", samples(), ids=str)
def test_count_of_every_op(sample):
    assert (counted(sample) > 0) == (sample.name not in NOT_COUNTED)


CONVOLUTIONS = {
    "dense": ((2, 6, 9, 8), (4, 6, 3, 3), {"dilation": 2}),
    "for winograd": ((1, 32, 24, 24), (32, 32, 3, 3), {}),
    "1x1": ((1, 16, 4, 4), (8, 16, 1, 1), {}),
    "strided": ((1, 3, 32, 32), (8, 3, 7, 7), {"stride": 2}),
    "grouped": ((1, 8, 9, 9), (6, 4, 3, 3), {"groups": 2}),
    "depthwise": ((2, 8, 9, 9), (8, 1, 5, 5), {"groups": 8, "dilation": 3}),
}


@pytest.mark.parametrize("needs", ["nothing", "x", "weight", "both"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_and_gradients(name, needs):
    """With what follows it, which torch does not count either."""
    x_shape, weight_shape, options = CONVOLUTIONS[name]
    x = torch.randn(x_shape, requires_grad=needs in ("x", "both"))
    weight = torch.randn(weight_shape, requires_grad=needs in ("weight", "both"))
    vector, padding = (
        torch.randn(weight_shape[0]),
        options.get("dilation", 1) * (weight.shape[2] // 2),
    )

    def ours():
        y = fastseg.atrous_conv2d(x, weight, vector, shift=vector, activation="relu", **options)
        if needs != "nothing":
            y.sum().backward()

    def theirs():
        y = F.relu(F.conv2d(x, weight, vector, padding=padding, **options) + 1)
        if needs != "nothing":
            y.sum().backward()

    assert counted(ours) == counted(theirs) > 0


@pytest.mark.parametrize("needs", ["nothing", "x", "weight"])
@pytest.mark.parametrize("name", [*CONVOLUTIONS, "over the map"])
def test_live_taps(name, needs):
    """Their share is the mean of a convolution of ones with ones."""
    over_the_map = ((1, 16, 9, 8), (16, 16, 3, 3), {"dilation": 7})
    x_shape, weight_shape, options = CONVOLUTIONS.get(name, over_the_map)
    x = torch.randn(x_shape, requires_grad=needs == "x")
    weight = torch.randn(weight_shape, requires_grad=needs == "weight")

    def ours():
        y = fastseg.atrous_conv2d(x, weight, **options)
        if needs != "nothing":
            y.sum().backward()

    rate, stride = options.get("dilation", 1), options.get("stride", 1)
    kernel = torch.ones(1, 1, *weight_shape[2:])
    geometry = {"padding": rate * (weight_shape[2] // 2), "dilation": rate, "stride": stride}
    live = F.conv2d(torch.ones(1, 1, *x_shape[2:]), kernel, **geometry)
    everything = counted(ours)
    with fastseg.ops.count_live_taps():
        counts = counted(ours)
    assert counts == everything * int(live.sum()) // (live.numel() * kernel.numel())
    assert counts < everything or weight_shape[2] == 1
    assert counted(ours) == everything


def test_live_taps_of_aspp():
    x = torch.randn(1, 32, 17, 17)
    block = fastseg.nn.ASPP(32, (6, 12, 18), 32, image_pooling=False).eval().requires_grad_(False)
    ones = torch.ones(1, 1, 17, 17)
    rates = [F.conv2d(ones, torch.ones(1, 1, 3, 3), padding=d, dilation=d) for d in (6, 12, 18)]
    pairs = 17 * 17 + sum(int(live.sum()) for live in rates)
    with fastseg.ops.count_live_taps():
        counts = counted(block, x)
    assert counts == 2 * (32 * 32 * pairs + 17 * 17 * 4 * 32 * 32)


def test_double_backward():
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(4, 4, 3, 3)

    def twice(convolve):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        gradients = torch.autograd.grad(convolve(*leaves).square().sum(), leaves, create_graph=True)
        sum(g.square().sum() for g in gradients).backward()

    theirs = counted(twice, lambda x, w: F.conv2d(x, w, padding=1))
    assert counted(twice, fastseg.atrous_conv2d) == theirs


@pytest.mark.parametrize("gradient", [False, True])
def test_aspp_and_separable(gradient):
    x = torch.randn(1, 8, 17, 17)
    block = fastseg.nn.ASPP(8, (3, 6), 8, image_pooling=False).eval().requires_grad_(gradient)
    shapes = [(8, 8, 1, 1), (8, 8, 3, 3), (8, 8, 3, 3), (8, 24, 1, 1)]
    pixels = 17 * 17
    expected = sum(2 * pixels * torch.Size(s).numel() for s in shapes)
    assert counted(block, x) == expected
    separable = fastseg.nn.SeparableAtrousConvBNAct(8, 12).eval().requires_grad_(gradient)
    assert counted(separable, x) == 2 * pixels * (8 * 9 + 8 * 12)
    if gradient:
        x.requires_grad_()
        assert counted(lambda: block(x).sum().backward()) == 3 * expected


def test_modules_are_named():
    """Counts belong to the module that made them."""
    block = torch.nn.Sequential(fastseg.nn.AtrousConvBNAct(3, 4), fastseg.nn.AtrousConvBNAct(4, 4))
    with FlopCounterMode(display=False) as counter:
        block.eval()(torch.randn(1, 3, 8, 8))
    counts = counter.get_flop_counts()
    assert sum(counts["Sequential.1"].values()) == 2 * 64 * 4 * 4 * 9


def test_exact_gaussian_filter():
    values, features = torch.randn(2, 3, 50), torch.randn(2, 2, 50)
    expected = counted(reference.exact_gaussian_filter, values, features)
    assert counted(ops.exact_gaussian_filter, values, features) == expected
    grad = torch.randn_like(values)
    expected = counted(reference.exact_gaussian_filter_backward, grad, values, features, 0.0)
    assert counted(ops.exact_gaussian_filter_backward, grad, values, features, 0.0) == expected


def test_fake_tensors():
    """Models are counted without being run."""
    with torch._subclasses.FakeTensorMode():
        x, weight = torch.empty(1, 8, 64, 64), torch.empty(8, 8, 3, 3)
        assert counted(fastseg.atrous_conv2d, x, weight) == 2 * 64 * 64 * 8 * 8 * 9
