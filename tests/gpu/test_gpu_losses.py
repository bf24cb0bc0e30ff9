"""Losses and counts of upsampled logits on a GPU: values, the same bits in every run, no wait."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import fastseg
from fastseg._core import library
from tests.head.loss_cases import (
    CASES,
    IGNORED,
    TOLERANCES,
    LossCase,
    assert_grad_near,
    assert_near,
    tensors,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here"),
]
VOC = LossCase(2, 21, (65, 65), (513, 513))
LOSSES = {
    "cross entropy": fastseg.upsample_cross_entropy,
    "smoothed": lambda z, t, **o: fastseg.upsample_cross_entropy(z, t, label_smoothing=0.1, **o),
    "dice": fastseg.upsample_dice_loss,
    "focal": fastseg.upsample_focal_loss,
    "ohem": fastseg.upsample_ohem_cross_entropy,
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def value_and_gradient(loss, logits, target):
    leaf = logits.detach().requires_grad_()
    value = loss(leaf, target, ignore_index=IGNORED)
    value.backward()
    return value.detach().cpu(), leaf.grad.cpu()


def test_the_kernels_are_loaded():
    heads = [name for name in library.NAMES if name.startswith("upsample_")]
    assert {library.backend(name, "cuda") for name in heads} == {"CUDA C++"}


@each_loss
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", [*CASES, VOC], ids=str)
def test_losses_match_those_of_the_cpu_in_float64(case, dtype, loss):
    logits, target = tensors(case, dtype)
    if not case.batch:
        return
    expected = value_and_gradient(loss, logits.double(), target)
    for layout in (torch.contiguous_format, torch.channels_last):
        on_gpu = logits.cuda().contiguous(memory_format=layout)
        value, grad = value_and_gradient(loss, on_gpu, target.cuda())
        tolerance = 4 * TOLERANCES[dtype]
        assert_near(value, expected[0], tolerance)
        assert_grad_near(grad, expected[1], tolerance)


@each_loss
def test_every_run_gives_the_same_bits(loss):
    logits, target = (t.cuda() for t in tensors(VOC))
    first = value_and_gradient(loss, logits, target)
    for _ in range(5):
        assert all(map(torch.equal, first, value_and_gradient(loss, logits, target)))


def test_the_confusion_matrix_is_that_of_the_class_map():
    logits, target = (t.cuda() for t in tensors(VOC))
    counts = fastseg.upsample_confusion_matrix(logits, target, ignore_index=IGNORED)
    classes = fastseg.upsample_argmax(logits, target.shape[1:])
    expected = fastseg.confusion_matrix(classes, target, 21, ignore_index=IGNORED)
    assert torch.equal(counts, expected)


def test_nothing_waits_for_the_device():
    logits, target = (t.cuda() for t in tensors(VOC))
    leaf = logits.requires_grad_()
    torch.cuda.set_sync_debug_mode("error")
    try:
        fastseg.upsample_cross_entropy(leaf, target, ignore_index=IGNORED).backward()
        fastseg.upsample_dice_loss(leaf, target, ignore_index=IGNORED).backward()
        fastseg.upsample_confusion_matrix(logits, target, ignore_index=IGNORED)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_bad_target_is_a_device_side_assert():
    program = (
        "import torch, fastseg; logits = torch.zeros(1, 3, 4, 4, device='cuda');"
        "target = torch.full((1, 9, 9), 3, device='cuda');"
        "fastseg.upsample_cross_entropy(logits, target); torch.cuda.synchronize()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode != 0
    assert "upsample_cross_entropy: target must be a class" in result.stderr
