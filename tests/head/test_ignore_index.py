"""An ignore_index that the target's dtype cannot hold: as uint8, -100 would be class 156."""

from __future__ import annotations

import pytest
import torch

import fastseg
from fastseg import metrics, ops, reference
from fastseg.train.losses import Loss

CLASSES, IGNORE = 171, -100  # COCO-Stuff's classes, torch's number
LOSSES = {
    "cross_entropy": ops.upsample_cross_entropy,
    "dice": ops.upsample_dice_loss,
    "focal": ops.upsample_focal_loss,
    "ohem_cross_entropy": ops.upsample_ohem_cross_entropy,
}


@pytest.fixture
def target():
    return torch.randint(CLASSES, (2, 9, 10)).masked_fill_(torch.rand(2, 9, 10) < 0.3, 156)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, target):
    results = []
    for labels in (target, target.to(torch.uint8)):
        torch.manual_seed(0)
        logits = torch.randn(2, CLASSES, 4, 5, dtype=torch.float64, requires_grad=True)
        value = LOSSES[loss](logits, labels, ignore_index=IGNORE)
        results.append((value.detach(), *torch.autograd.grad(value, logits)))
    torch.testing.assert_close(*results)


def test_references(target):
    logits = torch.randn(2, CLASSES, 4, 5, dtype=torch.float64)
    weight_map = torch.rand(target.shape, dtype=torch.float64)
    results = []
    for labels in (target, target.to(torch.uint8)):
        options = (None, weight_map, False, IGNORE, 0.1)
        loss, _, normalizer = reference.upsample_cross_entropy(logits, labels, *options, "none")
        grad = reference.upsample_cross_entropy_backward(
            torch.ones_like(loss), logits, labels, normalizer, *options
        )
        sums = reference.upsample_softmax_sums(logits, labels, False, IGNORE, False)
        results.append((loss, grad, *sums))
    torch.testing.assert_close(*results)


def test_counts(target):
    prediction = torch.randint(CLASSES, target.shape)
    wide, narrow = (
        fastseg.confusion_matrix(
            prediction.to(dtype), target.to(dtype), CLASSES, ignore_index=IGNORE
        )
        for dtype in (torch.int64, torch.uint8)
    )
    assert torch.equal(wide, narrow)


def test_metrics_refuse_what_is_no_class(target):
    labels = target.to(torch.uint8)
    with pytest.raises(ValueError, match="label must hold ids 0 to 155"):
        metrics.BoundaryIoU(156, ignore_index=IGNORE).update(labels.clamp(max=155), labels)


def test_losses_of_a_run(target):
    loss = Loss("focal", None, IGNORE)
    for labels in (target, target.to(torch.uint8)):
        loss.measure(labels)
        assert loss.whole["pixels"] == target.numel()
