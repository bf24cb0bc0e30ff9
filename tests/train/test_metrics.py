"""Metrics against hand-computed figures and a brute-force count."""

import math

import numpy as np
import pytest
import torch

from fastseg.metrics import ConfusionMatrix


def filled(label, prediction, num_classes=3, ignore_index=None):
    matrix = ConfusionMatrix(num_classes, ignore_index)
    matrix.update(torch.tensor(prediction), torch.tensor(label))
    return matrix


def test_figures_of_a_matrix_worked_out_by_hand():
    matrix = filled(label=[0, 0, 0, 1, 1, 2, 9], prediction=[0, 0, 1, 1, 2, 2, 0], ignore_index=9)
    assert matrix.counts.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert matrix.pixel_accuracy() == pytest.approx(4 / 6)
    assert matrix.class_accuracy() == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert matrix.ious().tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 2])
    assert matrix.mean_iou() == pytest.approx(0.5)


def test_a_class_neither_labelled_nor_predicted_does_not_count():
    matrix = filled(label=[0, 0, 1], prediction=[0, 0, 1])
    assert math.isnan(matrix.ious()[2])
    assert matrix.mean_iou() == 1
    assert matrix.class_accuracy() == 1


def test_a_class_predicted_but_never_labelled_counts_in_miou_only():
    matrix = filled(label=[0, 0, 1, 1], prediction=[0, 0, 1, 2])
    assert matrix.ious().tolist() == [1, 0.5, 0]
    assert matrix.mean_iou() == 0.5
    assert matrix.class_accuracy() == pytest.approx(0.75)


def test_batches_add_up_to_the_brute_force_count():
    generator = torch.Generator().manual_seed(0)
    matrix = ConfusionMatrix(5, ignore_index=255)
    expected = np.zeros((5, 5), dtype=np.int64)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        prediction = torch.randint(5, (2, 7, 9), generator=generator).to(dtype)
        label = torch.randint(5, (2, 7, 9), generator=generator).to(dtype)
        if dtype is torch.int64:
            label[0, :3] = 255
        matrix.update(prediction, label)
        for i, j in zip(label.flatten().tolist(), prediction.flatten().tolist(), strict=True):
            if i != 255:
                expected[i, j] += 1
    np.testing.assert_array_equal(matrix.counts.numpy(), expected)


def test_a_prediction_on_ignored_pixels_may_be_anything():
    assert filled(label=[9, 0], prediction=[77, 0], ignore_index=9).pixel_accuracy() == 1


def test_nothing_counted_gives_nan():
    matrix = filled(label=[9, 9], prediction=[0, 1], ignore_index=9)
    assert math.isnan(matrix.pixel_accuracy())
    assert math.isnan(matrix.mean_iou())


@pytest.mark.parametrize(
    ("label", "prediction", "error", "message"),
    [
        ([0, 1], [0, 1, 2], ValueError, r"one shape, got \(3,\) and \(2,\)"),
        ([0, 3], [0, 1], ValueError, "label must hold ids 0 to 2, got 0 to 3"),
        ([0, 1], [-1, 1], ValueError, "prediction must hold ids 0 to 2, got -1 to 1"),
        ([0, 1], [0.0, 1.0], TypeError, "prediction must hold integer"),
    ],
)
def test_errors_name_the_argument(label, prediction, error, message):
    with pytest.raises(error, match=message):
        filled(label, prediction)


def test_num_classes_must_be_positive():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ConfusionMatrix(0)
