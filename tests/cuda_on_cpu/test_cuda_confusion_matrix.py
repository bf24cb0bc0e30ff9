"""The CUDA kernels of confusion matrices, run on the CPU (tests/cuda_on_cpu)."""

from __future__ import annotations

import pytest
import torch

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import load
from tests.head.head_cases import CASES, STRIDES, Case, logits_of
from tests.head.test_confusion_matrix import IDS, maps
from tests.head.test_upsample_confusion_matrix import target_of
from tests.pool.pool_cases import misaligned

ops = torch.ops.fastseg_cuda_on_cpu
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

pytestmark = [
    pytest.mark.usefixtures("order"),
    pytest.mark.skipif(cuda_home() is None, reason="no CUDA headers (cuda_fp16.h) here"),
]


@pytest.fixture(autouse=True, scope="module")
def _library():
    load()


def assert_counts(prediction, target, classes, ignore_index=None):
    arguments = (prediction, target, classes, ignore_index)
    assert torch.equal(ops.confusion_matrix(*arguments), reference.confusion_matrix(*arguments))


@pytest.mark.parametrize("target_dtype", IDS, ids=str)
@pytest.mark.parametrize("prediction_dtype", IDS, ids=str)
def test_every_pair_of_dtypes(prediction_dtype, target_dtype):
    for shape in ((), (0,), (1,), (2, 33, 65)):
        prediction, target = maps(shape, 19, prediction_dtype, target_dtype)
        assert_counts(prediction, target, 19)
        if shape:
            assert_counts(misaligned(prediction), misaligned(target), 19)


@pytest.mark.parametrize("classes", [1, 2, 110, 111, 156, 157, 300])
def test_tables_in_shared_memory_and_beyond(classes):
    prediction, target = maps((2, 70, 65), classes, torch.int16, torch.int64)
    prediction[0, :3], target[0, 1:4] = classes - 1, classes - 1
    assert_counts(prediction, target, classes)


@pytest.mark.parametrize("ignore_index", [0, 255, -1])
def test_ignored_pixels(ignore_index):
    prediction, target = maps((3, 40, 41), 5, torch.int16, torch.int16)
    target[:, 5:9, 3:], target[1] = ignore_index, ignore_index
    prediction[target == ignore_index] = 77
    assert_counts(prediction, target, 5, ignore_index)


def test_layouts():
    prediction, target = maps((2, 3, 8, 9), 5, torch.uint8, torch.int64)
    last = [t.contiguous(memory_format=torch.channels_last) for t in (prediction, target)]
    assert_counts(*last, 5)
    assert_counts(prediction, last[1], 5)
    assert_counts(prediction[..., ::2], target[..., ::2], 5)
    assert_counts(prediction[:1].expand(2, 3, 8, 9), target, 5)


@pytest.mark.parametrize("bad", [-1, 5])
@pytest.mark.parametrize("place", [0, -1])
def test_a_bad_id_stops_the_op(bad, place):
    good = torch.zeros(50, 61, dtype=torch.int64)
    wrong = good.clone()
    wrong[place, place] = bad
    with pytest.raises(RuntimeError, match="confusion_matrix: prediction must hold ids 0 to num"):
        ops.confusion_matrix(wrong, good, 5)
    with pytest.raises(RuntimeError, match="confusion_matrix: target must hold ids 0 to num"):
        ops.confusion_matrix(good, wrong, 5)


def assert_upsampled_counts(logits, target, align_corners=False, ignore_index=None):
    arguments = (logits, target, align_corners, ignore_index)
    size, ids = target.shape[1:], torch.int64
    classes = ops.upsample_argmax(logits, size, align_corners, ids)
    expected = reference.confusion_matrix(classes, target, logits.shape[1], ignore_index)
    counts = ops.upsample_confusion_matrix(*arguments)
    assert torch.equal(counts, expected)
    assert counts.sum() == (
        target.numel() if ignore_index is None else int((target != ignore_index).sum())
    )


@pytest.mark.parametrize("align_corners", [False, True], ids=["", "aligned"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts_of_upsampled_logits(case, align_corners):
    """The classes are those of upsample_argmax, whose own test is beside the reference."""
    for dtype in FLOATS if case.shape[1] < 100 else FLOATS[:1]:
        logits = logits_of(case, dtype)
        assert_upsampled_counts(logits, target_of(case), align_corners)
        assert_upsampled_counts(logits, target_of(case, ignored=-100), align_corners, -100)


@pytest.mark.parametrize("strides", STRIDES)
def test_layouts_of_upsampled_logits(strides):
    case = Case((2, 5, 6, 7), (21, 70))
    logits = logits_of(case, torch.float32, strides)
    for dtype in IDS[:5]:
        target = target_of(case, dtype)
        assert_upsampled_counts(logits, target)
        assert_upsampled_counts(logits, target.mT.contiguous().mT)
    smooth = torch.zeros(1, 3, 2, 2)  # warps of one pair
    smooth[:, 2] = 1
    assert_upsampled_counts(smooth, torch.ones(1, 70, 70, dtype=torch.int32))


@pytest.mark.parametrize("bad", [-1, 5, 2**32])
def test_a_bad_target_of_upsampled_logits_stops_the_op(bad):
    logits, target = torch.zeros(1, 5, 3, 3), torch.zeros(1, 9, 40, dtype=torch.int64)
    target[0, 8, 39] = bad
    with pytest.raises(RuntimeError, match="upsample_confusion_matrix: target must hold ids 0 to"):
        ops.upsample_confusion_matrix(logits, target, False, None)
    ops.upsample_confusion_matrix(logits, target, False, bad)
