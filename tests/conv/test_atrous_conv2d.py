"""fastseg.atrous_conv2d against the reference in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import fastseg
from tests.conv.conv_cases import (
    ACTIVATION_NAMES,
    CASES,
    IN_BLOCKS,
    ConvCase,
    assert_close,
    expected_conv2d,
    needs_kernel,
    operands,
)
from tests.pool.pool_cases import (
    FLOATS,
    LAYOUTS,
    STRIDES,
    assert_identical,
    assert_layout,
    in_layout,
)

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
each_dtype = pytest.mark.parametrize("dtype", FLOATS, ids=lambda d: str(d)[6:])
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=("contiguous", "channels_last"))
each_activation = pytest.mark.parametrize("activation", ACTIVATION_NAMES, ids=str)
SOME = (
    ConvCase((2, 19, 11, 10), 18),
    ConvCase((1, 18, 33, 20), 20, dilation=(6, 6)),
    ConvCase((2, 21, 9, 9), 35, (1, 1)),
    ConvCase((2, 17, 20, 13), 17, dilation=(6, 6), groups=17),
    ConvCase((1, 5, 14, 11), 4, (3, 5), stride=(2, 2)),
)
each_of_some_and_blocks = pytest.mark.parametrize("case", [*SOME, IN_BLOCKS], ids=str)
each_of_some = pytest.mark.parametrize("case", SOME, ids=str)


def by_hand(x, weight, case):
    """The sum over taps, written out."""
    (sv, sh), (pv, ph), (dv, dh), groups = case.geometry
    out = x.new_zeros(case.out_shape)
    per_group = case.out_channels // groups
    for n, o, i, j in itertools.product(*map(range, case.out_shape)):
        first = o // per_group * weight.shape[1]
        for a, b in itertools.product(*map(range, case.kernel)):
            row, column = i * sv - pv + a * dv, j * sh - ph + b * dh
            if 0 <= row < x.shape[2] and 0 <= column < x.shape[3]:
                pixel = x[n, first : first + weight.shape[1], row, column]
                out[n, o, i, j] += weight[o, :, a, b] @ pixel
    return out


@pytest.mark.parametrize(
    "case",
    [
        ConvCase((2, 2, 4, 5), 3, dilation=(2, 3)),
        ConvCase((1, 4, 6, 5), 2, (3, 1), (1, 1), (2, 3), (2, 0), groups=2),
        ConvCase((1, 3, 4, 4), 6, padding=(1, 6), dilation=(1, 3), groups=3),
    ],
    ids=str,
)
def test_by_hand(case, simd_level):
    """The reference too, which all other tests compare with."""
    x, weight = case.tensors()
    expected = by_hand(x, weight, case)
    assert_close(expected_conv2d(x, weight, case)[0], expected)
    assert_close(fastseg.atrous_conv2d(x.float(), weight.float(), **case.options), expected)


def test_epilogue_by_hand(simd_level):
    """act((conv + bias) * scale + shift + residual), in this order."""
    for layout in LAYOUTS:
        x = torch.full((1, 1, 2, 9), 2.0).contiguous(memory_format=layout)
        weight = torch.tensor([3.0, -3.0]).view(2, 1, 1, 1)
        bias, scale, shift = (torch.tensor(v) for v in ([1.0, 1], [2.0, 3], [0.5, -0.5]))
        residual = torch.full((1, 2, 2, 9), 0.25)
        y = fastseg.atrous_conv2d(
            x, weight, bias, scale=scale, shift=shift, residual=residual, activation="leaky_relu"
        )
        assert (y[:, 0] == 14.75).all()
        torch.testing.assert_close(y[:, 1], torch.full((1, 2, 9), -0.1525))


@each_layout
@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case(case, dtype, layout, simd_level):
    x, weight = case.tensors(dtype, layout)
    y = fastseg.atrous_conv2d(x, weight, **case.options)
    assert y.dtype == dtype
    assert_layout(y, layout)
    assert_close(y, *expected_conv2d(x, weight, case))


@each_layout
@pytest.mark.parametrize("channels", [(4, 8), (17, 3)], ids=str)
def test_maps_of_every_size(channels, layout, simd_level):
    for rate, size in itertools.product((1, 2), range(1, 41)):
        shape = (3, channels[0], size, 41 - size)
        case = ConvCase(shape, channels[1], dilation=(rate, rate))
        x, weight = case.tensors(torch.float32, layout)
        y = fastseg.atrous_conv2d(x, weight, **case.options)
        assert_close(y, *expected_conv2d(x, weight, case))


@each_layout
@each_activation
@each_of_some
def test_every_epilogue(case, activation, layout, simd_level):
    x, weight = case.tensors(torch.float32, layout)
    given = operands(case, torch.float32)
    for present in itertools.product((False, True), repeat=len(given)):
        chosen = {k: v for (k, v), p in zip(given.items(), present, strict=True) if p}
        y = fastseg.atrous_conv2d(x, weight, **chosen, **case.options, activation=activation)
        assert_layout(y, layout)
        assert_close(y, *expected_conv2d(x, weight, case, activation, **chosen))


@each_dtype
@pytest.mark.parametrize("vector_dtype", FLOATS, ids=lambda d: str(d)[6:])
@each_of_some_and_blocks
def test_vectors_of_any_floating_dtype(case, dtype, vector_dtype, simd_level):
    """Computed in float32 with 16-bit x too, and rounded once, or twice by torch's bfloat16."""
    x, weight = case.tensors(dtype)
    given = {k: v.to(vector_dtype) for k, v in operands(case).items()}
    given["residual"] = given["residual"].to(dtype)
    y = fastseg.atrous_conv2d(x, weight, **given, **case.options, activation="relu6")
    assert y.dtype == dtype
    roundings = 2 if dtype == torch.bfloat16 else 1
    assert_close(y, *expected_conv2d(x, weight, case, "relu6", **given), roundings)


@pytest.mark.parametrize("kind", STRIDES)
@each_of_some
def test_strides_of_x(case, kind, simd_level):
    x = in_layout(torch.randn(case.shape), kind)
    channels = x.shape[-3]
    groups = channels if case.groups > 1 else 1
    case = case._replace(
        shape=tuple(x.shape if x.dim() == 4 else x[None].shape),
        groups=groups,
        out_channels=groups if groups > 1 else case.out_channels,
    )
    weight = torch.randn(case.weight_shape)
    given = operands(case, torch.float32)
    expected, size = expected_conv2d(x.view(case.shape), weight, case, "relu", **given)
    if x.dim() == 3:
        given["residual"], expected = given["residual"][0], expected[0]
    y = fastseg.atrous_conv2d(x, weight, **given, **case.options, activation="relu")
    assert_close(y, expected, size)


@each_layout
@each_of_some
def test_strides_of_the_other_operands(case, layout, simd_level):
    x, weight = case.tensors(torch.float32, layout)
    n, c, h, w = case.out_shape
    given = {k: torch.randn(c, 3)[:, 1] for k in ("bias", "scale", "shift")}
    weights = (
        weight.contiguous(memory_format=torch.channels_last),
        weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        weight[:1].expand(weight.shape),
        weight.flip(-1),
        torch.full((c, *weight.shape[1:-1], 2 * weight.shape[-1]), math.nan)[..., ::2].copy_(
            weight
        ),
    )
    residuals = (
        torch.randn(n, c, h, w).contiguous(memory_format=torch.channels_last),
        torch.randn(n, c, h, w),
        torch.randn(n, c, 1, 1).expand(n, c, h, w),  # a bias an image
        torch.randn(1, h, w).expand(n, c, h, w),
        torch.randn(w, h, c, n).permute(3, 2, 1, 0),
    )
    for weight, residual in zip(weights, residuals, strict=True):
        y = fastseg.atrous_conv2d(x, weight, **given, residual=residual, **case.options)
        assert_layout(y, layout)
        assert_close(y, *expected_conv2d(x, weight, case, residual=residual, **given))
    one = torch.ones(1).expand(c)
    y = fastseg.atrous_conv2d(x, weight, one, scale=one, shift=one, **case.options)
    assert_close(y, *expected_conv2d(x, weight, case, bias=one, scale=one, shift=one))


@each_of_some
def test_three_dimensions(case, simd_level):
    x, weight = case.tensors(torch.float32)
    residual = torch.randn(case.out_shape)
    y = fastseg.atrous_conv2d(x, weight, residual=residual, **case.options)
    one = fastseg.atrous_conv2d(x[0], weight, residual=residual[0], **case.options)
    assert one.shape == case.out_shape[1:]
    torch.testing.assert_close(one, y[0])


# Values that are not finite.


@each_layout
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@each_of_some_and_blocks
def test_what_is_not_finite_reaches_what_reads_it(case, value, layout, simd_level):
    n, c, h, w = case.shape
    places = [(0, 0, 0), (h - 1, w - 1, c - 1), (h // 2, w // 2, c // 2), (2, 1, 0), (0, w // 2, 1)]
    for row, column, channel in places:
        x, weight = case.tensors(torch.float32, layout)
        x[n - 1, channel, row, column] = value
        indicator = torch.zeros(case.shape)
        indicator[n - 1, channel, row, column] = 1
        reads = expected_conv2d(indicator, torch.ones_like(weight), case)[0] > 0
        y = fastseg.atrous_conv2d(x, weight, **case.options)
        assert torch.equal(y.isnan() if math.isnan(value) else ~y.isfinite(), reads)
        assert_close(y, *expected_conv2d(x, weight, case))
    assert reads.any()
    assert not reads.all()


@each_layout
@each_of_some_and_blocks
def test_infinities_of_both_signs(case, layout, simd_level):
    x, weight = case.tensors(torch.float32, layout)
    lot = torch.randint(0, 60, case.shape)
    x[lot == 0], x[lot == 1], x[lot == 2] = math.inf, -math.inf, math.nan
    y = fastseg.atrous_conv2d(x, weight, **case.options)
    assert_close(y, *expected_conv2d(x, weight, case))


@each_layout
@each_of_some_and_blocks
def test_a_nan_of_another_operand_stays_in_its_channel(case, layout, simd_level):
    x, weight = case.tensors(torch.float32, layout)
    given = operands(case, torch.float32)
    expected, size = expected_conv2d(x, weight, case, "relu", **given)
    channel = case.out_channels // 3
    others = [c for c in range(case.out_channels) if c != channel]
    for name in ("weight", "bias", "scale", "shift"):
        changed = {"weight": weight, **given}
        changed[name] = changed[name].clone()
        centre = (channel, 0, case.kernel[0] // 2, case.kernel[1] // 2)
        changed[name][centre if name == "weight" else channel] = math.nan
        y = fastseg.atrous_conv2d(x, **changed, **case.options, activation="relu")
        assert y[:, channel].isnan().all()
        assert_close(y[:, others], expected[:, others], size)
    given["residual"][0, channel, 1, 2] = expected[0, channel, 1, 2] = math.nan
    y = fastseg.atrous_conv2d(x, weight, **given, **case.options, activation="relu")
    assert_close(y, expected, size)


@each_layout
@each_dtype
@each_activation
def test_activations_of_every_value(activation, dtype, layout, simd_level):
    """Kinks, large numbers, NaN, infinities, under an identity."""
    values = [0, -0.0, 1, -1, 3, -3, 2.99, -2.99, 3.01, -3.01, 6, 6.01, 20, -20, 90, -90, 1e4, -1e4]
    x = torch.tensor([*values, math.nan, math.inf, -math.inf]).repeat(2).view(1, 1, 2, -1).to(dtype)
    x = x.expand(-1, 3, -1, -1).contiguous(memory_format=layout)
    function = getattr(F, activation) if activation else torch.Tensor.clone
    expected = function(x.double())
    one = torch.ones(3, 1, 1, 1, dtype=dtype)
    y = fastseg.atrous_conv2d(x, one, activation=activation, groups=3)
    assert_close(y, expected, 20.0)
    y = fastseg.atrous_conv2d(x[:, :1], one[:1], activation=activation)
    assert_close(y, expected[:, :1], 20.0)
    # More outputs than inputs: there oneDNN's own activations may run.
    wide = x[:, :1].contiguous(memory_format=layout), one[:1].expand(8, 1, 1, 1).contiguous()
    y = fastseg.atrous_conv2d(*wide, activation=activation)
    assert_close(y, expected[:, :1].expand(-1, 8, -1, -1), 20.0)
    finite = wide[0].nan_to_num(nan=0.5, posinf=1, neginf=-1)
    y = fastseg.atrous_conv2d(finite, wide[1], activation=activation)
    assert_close(y, function(finite.double()).expand(-1, 8, -1, -1), 20.0)
    x, expected = (t.where(x.isfinite(), 0) for t in (x, expected))  # 0 * NaN is NaN below
    y = fastseg.atrous_conv2d(x, torch.eye(3, dtype=dtype)[..., None, None], activation=activation)
    assert_close(y, expected, 20.0)


@each_of_some
def test_sixteen_bits_overflow_to_infinity(case, simd_level):
    x, weight = case.tensors(torch.float16)
    scale = torch.full((case.out_channels,), 1e5)
    y = fastseg.atrous_conv2d(x, weight, scale=scale, **case.options)
    expected, _ = expected_conv2d(x, weight, case, scale=scale)
    sure = expected.abs() > 66000
    assert (y[sure].double() == expected[sure].sign() * math.inf).all()
    assert sure.any()


# One result, whatever runs it.


@needs_kernel("atrous_conv2d")
@each_layout
@pytest.mark.parametrize(
    "case", [*SOME, IN_BLOCKS, ConvCase((1, 40, 65, 65), 24, dilation=(12, 12))], ids=str
)
def test_deterministic_for_any_number_of_threads(case, layout, simd_level):
    x, weight = case.tensors(torch.float32, layout)
    given = operands(case, torch.float32)
    results = []
    for threads in (1, 2, 3, 2):
        torch.set_num_threads(threads)
        results.append(fastseg.atrous_conv2d(x, weight, **given, **case.options))
    for y in results[1:]:
        assert_identical(y, results[0])


def test_arguments_are_left_alone(simd_level):
    for case in SOME:
        x, weight = case.tensors(torch.float32)
        tensors = [x, weight, *operands(case, torch.float32).values()]
        before = [t.clone() for t in tensors]
        fastseg.atrous_conv2d(*tensors[:3], scale=tensors[3], residual=tensors[5], **case.options)
        for a, b in zip(tensors, before, strict=True):
            assert_identical(a, b)


def test_weights_that_change_in_place_count(simd_level):
    """Whatever a kernel packs of a weight, it does not outlive the weight's values."""
    for case in SOME:
        x, weight = case.tensors(torch.float32)
        for change in (lambda w: w.mul_(2), lambda w: w.data.neg_(), lambda w: w.fill_(0.5)):
            fastseg.atrous_conv2d(x, weight, **case.options)
            change(weight)
            y = fastseg.atrous_conv2d(x, weight, **case.options)
            assert_close(y, *expected_conv2d(x, weight, case))
