"""The class map of upsampled logits, against torch's two ops in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastseg
from tests.head.head_cases import CASES, STRIDES, Case, logits_of

pytestmark = pytest.mark.usefixtures("garbage_in_new_memory")
ops = torch.ops.fastseg
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SMALL = Case((2, 5, 6, 7), (21, 17))
INF, NAN = float("inf"), float("nan")
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_alignment = pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])


def full_size(logits, size, align_corners):
    return F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)


def assert_best(classes, full, tolerance):
    """The chosen logit is the largest one, up to rounding."""
    assert classes.shape == (full.shape[0], *full.shape[2:])
    chosen = full.gather(1, classes.long()[:, None])[:, 0]
    torch.testing.assert_close(chosen, full.amax(1), rtol=0, atol=tolerance)


def tolerance_of(dtype):
    return 1e-12 if dtype == torch.float64 else 2e-5


@each_alignment
@each_dtype
@pytest.mark.parametrize("case", CASES, ids=str)
def test_classes_and_confidence(case, dtype, align_corners, simd_level):
    ids = torch.uint8 if case.shape[1] <= 256 else torch.int16
    tolerance = tolerance_of(dtype)
    logits = logits_of(case, dtype)
    full = full_size(logits, case.size, align_corners)
    options = {"align_corners": align_corners, "dtype": ids}
    classes = fastseg.upsample_argmax(logits, case.size, **options)
    same, confidence = fastseg.upsample_argmax(logits, case.size, return_confidence=True, **options)
    assert classes.dtype == ids
    assert_best(classes, full, tolerance)
    assert torch.equal(classes, same)
    expected = full.softmax(1).gather(1, classes.long()[:, None])[:, 0]
    assert confidence.dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(confidence.double(), expected, rtol=tolerance, atol=tolerance)
    for strides in STRIDES[1:]:
        logits = logits_of(case, dtype, strides)
        classes = fastseg.upsample_argmax(logits, case.size, **options)
        assert_best(classes, full_size(logits, case.size, align_corners), tolerance)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("case", [SMALL, Case((1, 4, 6, 6), (60, 66))], ids=str)
def test_dtypes_of_class_maps(case, dtype):
    logits = logits_of(case, torch.float32)
    classes = fastseg.upsample_argmax(logits, case.size, dtype=dtype)
    assert classes.dtype == dtype
    assert_best(classes, full_size(logits, case.size, False), 2e-5)


@each_alignment
def test_smooth_logits_of_one_class_each(align_corners):
    """Most classes are left out of most cells, and those that are nearly equal are not."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(1, 19, 28, 36, generator=generator)
    for scale in (1e-6, 1.0, 1e4, 1e38):
        logits = F.avg_pool2d(noise, 13, 1) * scale
        full = full_size(logits, (131, 196), align_corners)
        classes = fastseg.upsample_argmax(logits, (131, 196), align_corners=align_corners)
        assert_best(classes, full, 2e-6 * scale)


def test_the_first_of_equal_ones():
    logits = torch.zeros(1, 7, 5, 5)
    assert not fastseg.upsample_argmax(logits, (40, 40)).any()
    logits[:, 3] = logits[:, 5] = 1
    assert (fastseg.upsample_argmax(logits, (40, 40)) == 3).all()
    logits = torch.randn(1, 3, 6, 8).repeat(1, 2, 1, 1)
    assert (fastseg.upsample_argmax(logits, (50, 50)) < 3).all()


@each_alignment
@pytest.mark.parametrize("size", [(15, 24), (6, 24), (15, 7), (6, 7), (3, 4)], ids=str)
def test_not_a_number_and_infinity_as_in_torch(size, align_corners, simd_level):
    """Where a weight is zero, an infinite neighbour makes torch's pixel NaN."""
    generator = torch.Generator().manual_seed(2)
    for value in (NAN, INF, -INF):
        for _ in range(4):
            logits = torch.randn(1, 5, 6, 7, generator=generator)
            mask = torch.rand(logits.shape, generator=generator) < 0.03
            logits = logits.masked_fill(mask, value)
            logits[:, 2] = value if value == -INF else logits[:, 2]  # a class that is ruled out
            full = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
            classes, confidence = fastseg.upsample_argmax(
                logits, size, align_corners=align_corners, return_confidence=True
            )
            # Which pixels lie exactly on a source row is a matter of one rounding.
            differ = classes.long() != full.argmax(1)
            assert differ.float().mean() < 0.02
            expected = full.softmax(1).amax(1)
            same = ~differ
            torch.testing.assert_close(
                confidence[same], expected[same], equal_nan=True, rtol=1e-5, atol=1e-5
            )


def test_any_number_of_threads():
    logits = logits_of(Case((3, 19, 17, 23), (136, 184)), torch.float32)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(fastseg.upsample_argmax(logits, (136, 184), return_confidence=True))
    finally:
        torch.set_num_threads(before)
    for classes, confidence in found[1:]:
        assert torch.equal(classes, found[0][0])
        assert torch.equal(confidence, found[0][1])


def test_4096_classes():
    case = Case((1, 4096, 3, 5), (24, 40))
    logits = logits_of(case, torch.float32)
    classes = fastseg.upsample_argmax(logits, case.size, dtype=torch.int16)
    assert_best(classes, full_size(logits, case.size, False), 2e-5)


def test_no_gradient():
    logits = logits_of(SMALL, torch.float32).requires_grad_()
    classes, confidence = fastseg.upsample_argmax(logits, SMALL.size, return_confidence=True)
    assert not classes.requires_grad
    assert not confidence.requires_grad


@pytest.mark.parametrize("name", ["upsample_argmax", "upsample_argmax_confidence"])
def test_opcheck(name):
    for dtype, strides in itertools.product(DTYPES, ("contiguous", "channels_last")):
        arguments = (logits_of(SMALL, dtype, strides), SMALL.size, False, torch.int64)
        torch.library.opcheck(getattr(ops, name).default, arguments)


def test_compile_with_dynamic_sizes():
    @torch.compile(fullgraph=True, dynamic=True)
    def compiled(logits, factor: int):
        size = (logits.shape[2] * factor, logits.shape[3] * factor)
        return fastseg.upsample_argmax(logits, size, return_confidence=True)

    for case in (SMALL, Case((1, 5, 4, 9), (0, 0))):
        logits = logits_of(case, torch.float32)
        size = (logits.shape[2] * 4, logits.shape[3] * 4)
        found = compiled(logits, 4)
        expected = fastseg.upsample_argmax(logits, size, return_confidence=True)
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)


def test_export():
    class Head(torch.nn.Module):
        def forward(self, logits):
            return fastseg.upsample_argmax(logits, (32, 40), dtype=torch.int64)

    logits = logits_of(SMALL, torch.float32)
    program = torch.export.export(Head(), (logits,))
    assert torch.equal(program.module()(logits), Head()(logits))


def test_vmap():
    logits = torch.randn(3, 2, 4, 5, 6)
    classes = torch.vmap(lambda z: fastseg.upsample_argmax(z, (20, 24)))(logits)
    expected = fastseg.upsample_argmax(logits.flatten(0, 1), (20, 24))
    assert torch.equal(classes.flatten(0, 1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(3, 4, 5)}, r"logits must have the shape \(N, C, h, w\)"),
        ({"logits": torch.zeros(1, 0, 5, 5)}, "at least one class and pixel"),
        ({"logits": torch.zeros(1, 2, 0, 5)}, "at least one class and pixel"),
        ({"logits": torch.zeros(1, 2, 5, 5).long()}, "logits must be float32"),
        ({"size": (0, 4)}, r"size must be \(H, W\) with at least one pixel, got \(0, 4\)"),
        ({"size": (-3, 4)}, r"size must be \(H, W\)"),
        ({"dtype": torch.float32}, "dtype must be uint8, int16, int32 or int64, got"),
        ({"logits": torch.zeros(1, 257, 2, 2)}, "holds ids up to 255, logits have 257 classes"),
    ],
    ids=str,
)
def test_bad_input(change, message):
    arguments = {"logits": torch.zeros(1, 2, 5, 5), "size": (8, 8), **change}
    for device in ("cpu", "meta"):
        arguments["logits"] = arguments["logits"].to(device)
        with pytest.raises(RuntimeError, match=message):
            fastseg.upsample_argmax(**arguments)
    with pytest.raises(TypeError, match="logits must be a tensor, got list"):
        fastseg.upsample_argmax([1.0], (8, 8))
