"""fastseg.confusion_matrix on a GPU: the reference's counts, no wait, errors of the device."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fastseg
from fastseg import reference
from fastseg.metrics import ConfusionMatrix
from tests.head.test_confusion_matrix import IDS, maps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]


@pytest.mark.parametrize("target_dtype", IDS, ids=str)
@pytest.mark.parametrize("prediction_dtype", IDS, ids=str)
def test_every_pair_of_dtypes(prediction_dtype, target_dtype):
    for classes in (2, 19, 126, 160, 300):
        prediction, target = maps((2, 301, 302), classes, prediction_dtype, target_dtype)
        expected = reference.confusion_matrix(prediction, target, classes)
        for p, t in ((prediction.cuda(), target.cuda()), (prediction.cuda().mT, target.cuda().mT)):
            assert torch.equal(fastseg.confusion_matrix(p, t, classes).cpu(), expected)


def test_nothing_waits_for_the_device():
    prediction, target = (t.cuda() for t in maps((2, 64, 65), 19, torch.uint8, torch.int64))
    metric = ConfusionMatrix(19, 255)
    metric.update(prediction, target)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastseg.confusion_matrix(prediction, target, 19, ignore_index=255)
        metric.update(prediction, target)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bad_id_is_a_device_side_assert():
    program = (
        "import torch, fastseg; ids = torch.full((9, 9), 7, device='cuda');"
        "fastseg.confusion_matrix(ids, ids, 7); torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode != 0
    assert "confusion_matrix: prediction must hold ids" in result.stderr
