"""Scores of confusion matrices beside formulas in numpy, scikit-learn and torchmetrics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastseg
from fastseg.metrics import ConfusionMatrix

CLASSES, VOID = 6, 255


def maps(seed=0, absent=(4,)):
    """Predictions and truths of which some classes are missing, with void."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(CLASSES - 1, (2, 20, 21), generator=generator)
    prediction = torch.where(torch.rand(label.shape, generator=generator) < 0.6, label, label // 2)
    for k in absent:
        label[label == k], prediction[prediction == k] = 0, 1
    label[0, :3] = VOID
    return prediction, label


def matrix(seed=0):
    filled = ConfusionMatrix(CLASSES, VOID)
    filled.update(*maps(seed))
    return filled


def flat(seed=0):
    """The counted pixels as numpy arrays: truth and prediction."""
    prediction, label = maps(seed)
    counted = label != VOID
    return label[counted].numpy(), prediction[counted].numpy()


def per_class(score):
    """A score of sets of pixels, for each class; nan for 0 / 0."""
    truth, prediction = flat()
    with np.errstate(invalid="ignore"):
        return [float(np.divide(*score(truth == k, prediction == k))) for k in range(CLASSES)]


SCORES = {
    "ious": lambda t, p: ((t & p).sum(), (t | p).sum()),
    "dice_scores": lambda t, p: (2 * (t & p).sum(), t.sum() + p.sum()),
    "precisions": lambda t, p: ((t & p).sum(), p.sum()),
    "recalls": lambda t, p: ((t & p).sum(), t.sum()),
    "class_accuracies": lambda t, p: ((t & p).sum(), t.sum()),
}
MEANS = {
    "ious": "mean_iou",
    "dice_scores": "mean_dice",
    "precisions": "mean_precision",
    "recalls": "mean_recall",
    "class_accuracies": "class_accuracy",
}


@pytest.mark.parametrize("name", SCORES)
def test_both_conventions_for_absent_classes(name):
    expected = np.array(per_class(SCORES[name]))
    assert np.isnan(expected).any()
    filled = matrix()
    np.testing.assert_allclose(getattr(filled, name)().numpy(), expected)
    assert getattr(filled, MEANS[name])() == pytest.approx(np.nanmean(expected))
    for absent in (0, 1):
        counted = np.where(np.isnan(expected), absent, expected)
        np.testing.assert_allclose(getattr(filled, name)(absent).numpy(), counted)
        assert getattr(filled, MEANS[name])(absent=absent) == pytest.approx(counted.mean())


def test_scores_of_all_classes_at_once():
    truth, prediction = flat()
    share = [(truth == k).mean() for k in range(CLASSES)]
    ious = np.nan_to_num(per_class(SCORES["ious"]))
    scores = matrix().compute()
    assert scores["pixel_accuracy"] == pytest.approx((truth == prediction).mean())
    assert scores["frequency_weighted_iou"] == pytest.approx(np.dot(share, ious))
    for name, mean in MEANS.items():
        assert scores[mean] == pytest.approx(np.nanmean(per_class(SCORES[name])))


def test_nothing_counted_is_nan():
    assert all(math.isnan(score) for score in ConfusionMatrix(3).compute().values())


def test_binary_masks():
    mask = torch.tensor([[True, False], [True, True]])
    filled = ConfusionMatrix(2)
    filled.update(mask, mask)
    assert filled.counts.tolist() == [[1, 0], [0, 3]]


@pytest.mark.parametrize("absent", [0, 1])
def test_scikit_learn(absent):
    sklearn = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    truth, prediction = flat()
    filled, labels = matrix(), list(range(CLASSES))
    np.testing.assert_array_equal(
        filled.counts.numpy(), sklearn.confusion_matrix(truth, prediction, labels=labels)
    )
    assert filled.pixel_accuracy() == pytest.approx(sklearn.accuracy_score(truth, prediction))
    theirs = {
        "ious": sklearn.jaccard_score,
        "dice_scores": sklearn.f1_score,
        "precisions": sklearn.precision_score,
        "recalls": sklearn.recall_score,
    }
    for name, score in theirs.items():
        options = {"labels": labels, "zero_division": absent}
        expected = score(truth, prediction, average=None, **options)
        np.testing.assert_allclose(getattr(filled, name)(absent).numpy(), expected)
        mean = score(truth, prediction, average="macro", **options)
        assert getattr(filled, MEANS[name])(absent) == pytest.approx(mean)


def test_torchmetrics_functions():
    theirs = pytest.importorskip(
        "torchmetrics.functional.classification", reason="torchmetrics is not installed"
    )
    prediction, label = maps()
    filled, options = matrix(), {"num_classes": CLASSES, "ignore_index": VOID}
    expected = theirs.multiclass_confusion_matrix(prediction, label, **options)
    assert torch.equal(filled.counts, expected)
    for name, score in {
        "ious": theirs.multiclass_jaccard_index,
        "dice_scores": theirs.multiclass_f1_score,
        "precisions": theirs.multiclass_precision,
        "recalls": theirs.multiclass_recall,
    }.items():
        expected = score(prediction, label, average="none", **options).double()
        torch.testing.assert_close(getattr(filled, name)(0), expected, rtol=1e-6, atol=1e-6)
    macro = theirs.multiclass_jaccard_index(prediction, label, average="macro", **options)
    assert filled.mean_iou() == pytest.approx(macro.item(), abs=1e-6)


def test_counts_from_logits_are_those_of_their_class_map():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, 7, generator=generator)
    label = torch.randint(0, 6, (2, 30, 28), generator=generator)
    by_map, by_logits = ConfusionMatrix(5, 5), ConfusionMatrix(5, 5)
    for align_corners in (False, True):
        classes = fastseg.upsample_argmax(logits, (30, 28), align_corners=align_corners)
        by_map.update(classes, label)
        by_logits.update_from_logits(logits, label, align_corners=align_corners)
    assert torch.equal(by_map.counts, by_logits.counts)
    with pytest.raises(ValueError, match=r"logits must be \(N, 5, h, w\), got \(2, 4, 6, 7\)"):
        by_logits.update_from_logits(logits[:, :4], label)
