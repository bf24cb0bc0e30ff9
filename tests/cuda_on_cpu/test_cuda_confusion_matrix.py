"""The CUDA kernel of fastseg.confusion_matrix, run on the CPU (tests/cuda_on_cpu)."""

from __future__ import annotations

import pytest
import torch

from fastseg import reference
from tests.cuda_on_cpu.build import cuda_home
from tests.cuda_on_cpu.loader import SANITIZE, load
from tests.cuda_on_cpu.sanitized import run_sanitized
from tests.head.test_confusion_matrix import IDS, maps
from tests.pool.pool_cases import misaligned

ops = torch.ops.fastseg_cuda_on_cpu

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


@pytest.mark.skipif(SANITIZE, reason="this is the inner run")
def test_under_address_sanitizer(order):
    """All accesses to tensors and shared memory checked."""
    if order != "forward":
        pytest.skip("threads that touch what they should not do so in any order")
    good = run_sanitized(__file__, "forward and (tables or ignored or layouts or uint8)")
    assert good.returncode == 0, good.stdout + good.stderr
