"""Pixel-adaptive refinement beside the published modules and the reference."""

from __future__ import annotations

import copy
import functools
import math
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses import FakeTensorMode

import fastseg
from fastseg import reference
from tests.refine.published_refinement import refine

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
op = torch.ops.fastseg.pixel_adaptive_refinement.default
backward = torch.ops.fastseg.pixel_adaptive_refinement_backward.default
each_variant = pytest.mark.parametrize("variant", ["par", "pamr"])

DILATIONS = [1, 2, 4, 8, 12, 24]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = [
    # image, channels of the masks, dilations, iterations
    ((2, 3, 30, 41), 4, DILATIONS, 2),
    ((1, 3, 20, 150), 9, [1, 12], 2),  # several tiles
    ((1, 3, 17, 33), 26, [1, 5], 2),  # several passes of masks
    ((2, 1, 9, 7), 2, [3, 1, 3], 3),
    ((1, 5, 16, 16), 1, [2], 2),
    ((1, 3, 5, 1), 3, [1, 2], 2),
    ((1, 3, 1, 18), 7, [4, 1], 2),
    ((1, 2, 1, 1), 2, [1], 2),
    ((1, 3, 6, 5), 2, [2**40, 100], 3),  # beyond the image
    ((1, 3, 8, 130), 8, [1, 70], 1),
    ((1, 3, 8, 9), 3, [1, 2], 0),
    ((0, 3, 4, 5), 2, [1], 2),
    ((2, 3, 4, 5), 0, [1], 2),
    ((2, 3, 0, 5), 2, [1], 2),
]
PUBLISHED = [case for case in CASES if math.prod(case[0]) * case[1] > 0 and max(case[2]) < 99]


def name_of(case):
    return "-".join(map(str, case))


each_number = pytest.mark.parametrize(
    "number", range(len(CASES)), ids=lambda number: name_of(CASES[number])
)
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d)[6:])


def inputs(case, dtype=torch.float32):
    shape, channels, dilations, iterations = case
    image = torch.rand(shape).to(dtype)
    return image, torch.randn(shape[0], channels, *shape[2:]).to(dtype), dilations, iterations


def assert_near(actual, expected, dtype):
    assert actual.dtype == dtype
    assert actual.is_contiguous()
    assert actual.shape == expected.shape
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@each_variant
@pytest.mark.parametrize("case", PUBLISHED, ids=name_of)
def test_is_the_published_formula(case, variant):
    image, masks, dilations, iterations = inputs(case, torch.float64)
    expected = refine(image, masks, dilations, iterations, variant)
    actual = reference.pixel_adaptive_refinement(image, masks, dilations, iterations, variant)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    actual = fastseg.pixel_adaptive_refinement(image, masks, dilations, iterations, variant)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@functools.cache
def both(number, dtype, variant):
    """A case's image, planes and options, its refined planes and their gradient in float64."""
    torch.manual_seed(number)
    image, planes, *options = inputs(CASES[number], dtype)
    wide = image.double(), planes.double()
    refined = reference.pixel_adaptive_refinement(*wide, *options, variant)
    grad = reference.pixel_adaptive_refinement_backward(*wide[::-1], *options, variant)
    return image, planes, (*options, variant), refined, grad


@each_number
@each_dtype
@each_variant
def test_is_the_reference_in_float64(number, dtype, variant, simd_level):
    image, planes, options, refined, grad = both(number, dtype, variant)
    assert_near(op(image, planes, *options), refined, dtype)
    assert_near(backward(planes, image, *options), grad, dtype)


@each_number
@each_dtype
@each_variant
def test_the_reference_in_any_dtype(number, dtype, variant):
    image, planes, options, refined, grad = both(number, dtype, variant)
    assert_near(reference.pixel_adaptive_refinement(image, planes, *options), refined, dtype)
    actual = reference.pixel_adaptive_refinement_backward(planes, image, *options)
    assert_near(actual, grad, dtype)


@each_variant
def test_small_masks_are_resized(variant):
    image = torch.rand(2, 3, 20, 31)
    for size in ((5, 8), (40, 31), (1, 1)):
        masks = torch.rand(2, 4, *size)
        actual = fastseg.pixel_adaptive_refinement(image, masks, [1, 4], 3, variant)
        expected = refine(image.double(), masks.double(), [1, 4], 3, variant)
        assert_near(actual, expected, torch.float32)


@each_variant
def test_bytes_as_floats_and_flat_images(variant, simd_level):
    """Values of 0 to 255, in which whole neighbourhoods are of one colour."""
    image = torch.randint(0, 256, (1, 3, 24, 40)).double()
    image[..., 10:, 15:] = 200.0
    image[..., 20, 30] = 10.0  # alone: the deviation of its neighbours is 0
    masks = torch.rand(1, 3, 24, 40, dtype=torch.float64)
    expected = refine(image, masks, [1, 2], 2, variant)
    actual = fastseg.pixel_adaptive_refinement(image.float(), masks.float(), [1, 2], 2, variant)
    assert_near(actual, expected, torch.float32)
    flat = torch.full((1, 3, 24, 40), 77.0)
    actual = fastseg.pixel_adaptive_refinement(flat, masks.float(), [1, 2], 2, variant)
    assert_near(actual, refine(flat.double(), masks, [1, 2], 2, variant), torch.float32)


@each_variant
def test_image_and_masks_of_different_dtypes(variant):
    image, masks = torch.rand(1, 3, 12, 9), torch.randn(1, 2, 12, 9)
    for one in TOLERANCE:
        for other in TOLERANCE:
            actual = op(image.to(one), masks.to(other), [1, 2], 3, variant)
            tensors = image.to(one).double(), masks.to(other).double()
            expected = reference.pixel_adaptive_refinement(*tensors, [1, 2], 3, variant)
            assert_near(actual, expected, other)


@each_variant
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_inf_reach_the_pixels_whose_neighbours_they_are(value, variant, simd_level):
    image, masks = torch.rand(1, 2, 12, 40), torch.rand(1, 3, 12, 40)
    masks[0, 1, 3, 20] = value
    image[0, 0, 11, 39] = value
    for compiled, plain, tensors in (
        (op, reference.pixel_adaptive_refinement, (image, masks)),
        (backward, reference.pixel_adaptive_refinement_backward, (masks, image)),
    ):
        actual, expected = (f(*tensors, [1, 3], 2, variant) for f in (compiled, plain))
        finite = expected.isfinite()
        assert torch.equal(actual.isfinite(), finite)
        torch.testing.assert_close(actual[finite], expected[finite], rtol=1e-5, atol=1e-5)
        assert 0 < finite.sum() < finite.numel()


@each_variant
def test_the_same_bits_for_any_number_of_threads(variant, simd_level):
    image, masks = torch.rand(1, 3, 50, 150), torch.rand(1, 9, 50, 150)
    results = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        refined = op(image, masks, DILATIONS, 3, variant)
        results.append((refined, backward(masks, image, DILATIONS, 3, variant)))
    for result in results[1:]:
        assert all(map(torch.equal, result, results[0]))


def test_weights_of_pamr_sum_to_1_and_of_par_to_1_01():
    image, ones = torch.rand(1, 3, 20, 30), torch.ones(1, 1, 20, 30)
    for variant, total in (("pamr", 1.0), ("par", 1.01)):
        refined = fastseg.pixel_adaptive_refinement(image, ones, iterations=3, variant=variant)
        torch.testing.assert_close(refined, ones * total**3)


@each_variant
def test_the_gradient_is_the_transpose(variant, simd_level):
    image = torch.rand(2, 3, 19, 40, dtype=torch.float64)
    x, y = torch.randn(2, 2, 4, 19, 40, dtype=torch.float64)
    left = (op(image, x, DILATIONS, 4, variant) * y).sum()
    torch.testing.assert_close(left, (backward(y, image, DILATIONS, 4, variant) * x).sum())


@each_variant
@pytest.mark.parametrize("size", [(5, 4), (3, 2)])
def test_gradients(size, variant):
    image = torch.rand(2, 3, 5, 4, dtype=torch.float64)
    masks = torch.randn(2, 2, *size, dtype=torch.float64, requires_grad=True)

    def function(masks):
        return fastseg.pixel_adaptive_refinement(image, masks, [1, 3], 2, variant)

    assert torch.autograd.gradcheck(function, (masks,))
    assert torch.autograd.gradgradcheck(function, (masks,))


def test_an_image_that_needs_a_gradient_is_refused():
    image, masks = torch.rand(1, 3, 5, 4, requires_grad=True), torch.rand(1, 2, 5, 4)
    with pytest.raises(NotImplementedError, match=r"no gradient for image; pass image.detach\(\)"):
        fastseg.pixel_adaptive_refinement(image, masks)
    with pytest.raises(NotImplementedError, match=r"no gradient for image; pass image.detach\(\)"):
        backward(masks, image, [1], 1)
    with torch.no_grad():
        fastseg.pixel_adaptive_refinement(image, masks)


def test_strides(simd_level):
    image, masks = torch.rand(2, 3, 14, 20), torch.rand(2, 4, 14, 20)
    expected = op(image, masks, [1, 2], 2)
    last = torch.channels_last
    for i, m in (
        (image.to(memory_format=last), masks.to(memory_format=last)),
        (image.mT.contiguous().mT, masks.flip(3).flip(3)),
        (image.repeat(1, 2, 1, 1)[:, :3], masks.repeat_interleave(2, 3)[..., ::2]),
    ):
        actual = op(i, m, [1, 2], 2)
        assert torch.equal(actual, expected)
        assert actual.is_contiguous()


def test_the_output_is_never_the_input():
    image, masks = torch.rand(1, 3, 4, 5), torch.rand(1, 2, 4, 5)
    refined = fastseg.pixel_adaptive_refinement(image, masks, [1], 0)
    assert torch.equal(refined, masks)
    assert refined.data_ptr() != masks.data_ptr()


@each_variant
def test_opcheck(variant):
    for dtype in (torch.float32, torch.bfloat16):
        image, masks = torch.rand(2, 3, 6, 5), torch.rand(2, 2, 6, 5).to(dtype)
        last = masks.contiguous(memory_format=torch.channels_last)
        torch.library.opcheck(op, (image, masks.requires_grad_(), [1, 2], 2, variant))
        torch.library.opcheck(op, (image, last, [3], 1, variant))
        torch.library.opcheck(backward, (last.requires_grad_(), image, [1, 2], 2, variant))


def test_compile_and_export():
    image, masks = torch.rand(2, 3, 10, 9), torch.rand(2, 2, 5, 4, requires_grad=True)
    module = fastseg.nn.PixelAdaptiveRefinement(dilations=[1, 2], num_iter=2)

    def loss(masks):
        return module(image, 2 * masks).square().mean()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        (compiled(masks), *torch.autograd.grad(compiled(masks), masks)),
        (loss(masks), *torch.autograd.grad(loss(masks), masks)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    exported = torch.export.export(module, (image, masks.detach())).module()
    torch.testing.assert_close(exported(image, masks), module(image, masks))


def test_autocast_changes_nothing():
    image, masks = torch.rand(1, 3, 8, 9), torch.rand(1, 2, 8, 9)
    with torch.autocast("cpu", torch.bfloat16):
        actual = fastseg.pixel_adaptive_refinement(image, masks)
    assert torch.equal(actual, fastseg.pixel_adaptive_refinement(image, masks))


IMAGE, MASKS = (1, 3, 8, 9), (1, 2, 8, 9)
BAD = {
    "image of 3 dimensions": ((3, 8, 9), MASKS, {}, r"image must be \(N, C, H, W\), got \(3, 8"),
    "masks of 5": (IMAGE, (1, 1, 2, 8, 9), {}, r"masks must be \(N, C, H, W\), got \(1, 1, 2, 8"),
    "no channel": ((1, 0, 8, 9), MASKS, {}, r"image must have at least one channel, got \(1, 0"),
    "other batch": ((2, 3, 8, 9), MASKS, {}, r"image must have masks's N, H and W, got \(2, 3"),
    "empty masks": (IMAGE, (1, 2, 0, 9), {}, r"image must have masks's N, H and W, got \(1, 3"),
    "no dilation": (IMAGE, MASKS, {"dilations": []}, r"dilations must be positive, .*, got"),
    "dilation 0": (IMAGE, MASKS, {"dilations": [1, 0]}, r"dilations must be positive, .* 1, 0|0"),
    "dilation -1": (IMAGE, MASKS, {"dilations": [-1]}, r"dilations must be positive, .*-1"),
    "iterations": (IMAGE, MASKS, {"iterations": -1}, "iterations must not be negative, got -1"),
    "variant": (IMAGE, MASKS, {"variant": "crf"}, "variant must be one of par, pamr, got 'crf'"),
}


@pytest.mark.parametrize("mode", ["eager", "fake", "reference"])
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name, mode):
    image, masks, options, message = BAD[name]
    message = f"^fastseg::pixel_adaptive_refinement: {message}"
    image, masks = torch.zeros(image), torch.zeros(masks)
    if mode == "reference":
        options = {"dilations": [1], "iterations": 1} | options
        with pytest.raises(RuntimeError, match=message):
            reference.pixel_adaptive_refinement(image, masks, **options)
        return
    tracing = FakeTensorMode(allow_non_fake_inputs=True) if mode == "fake" else nullcontext()
    with tracing, pytest.raises(RuntimeError, match=message):
        fastseg.pixel_adaptive_refinement(image, masks, **options)


def test_bad_dtypes():
    image, masks = torch.zeros(IMAGE), torch.zeros(MASKS)
    for dtype in (torch.uint8, torch.int64, torch.complex64):
        with pytest.raises(RuntimeError, match="image must be float32, float64"):
            fastseg.pixel_adaptive_refinement(image.to(dtype), masks)
        with pytest.raises(RuntimeError, match="masks must be float32, float64"):
            fastseg.pixel_adaptive_refinement(image, masks.to(dtype))


@each_variant
def test_module(variant):
    image, masks = torch.rand(1, 3, 9, 8), torch.rand(1, 2, 4, 4)
    module = fastseg.nn.PixelAdaptiveRefinement([1, 2], 3, variant=variant)
    torch.testing.assert_close(module(image, masks), refine(image, masks, [1, 2], 3, variant))
    assert repr(module) == (
        f"PixelAdaptiveRefinement(dilations=(1, 2), num_iter=3, variant='{variant}')"
    )
    assert not module.state_dict()
    assert torch.equal(copy.deepcopy(module)(image, masks), module(image, masks))


def test_checkpoints_of_models_that_hold_a_published_module_load():
    model = torch.nn.ModuleDict(
        {
            "head": torch.nn.Conv2d(3, 2, 1),
            "refine": fastseg.nn.PixelAdaptiveRefinement(num_iter=10, dilations=[1, 2]),
        }
    )
    head = {f"head.{name}": t for name, t in torch.nn.Conv2d(3, 2, 1).state_dict().items()}
    for names in (("kernel",), ("aff_x.kernel", "aff_m.kernel", "aff_std.kernel")):
        published = {f"refine.{name}": torch.zeros(8, 1, 3, 3) for name in names}
        model.load_state_dict(head | published)
        assert torch.equal(model["head"].weight, head["head.weight"])
    with pytest.raises(RuntimeError, match=r"refine\.weight"):
        model.load_state_dict(head | {"refine.weight": torch.zeros(1)})


def test_the_order_of_pamr_s_arguments_is_an_error():
    with pytest.raises(TypeError, match="dilations must be a sequence of integers, got 10"):
        fastseg.nn.PixelAdaptiveRefinement(10, [1, 2], variant="pamr")
