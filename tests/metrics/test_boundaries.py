"""Scores of boundaries beside oracles that compare all pixels with all others, in numpy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fastseg.metrics import BoundaryF1, BoundaryIoU, ConfusionMatrix, TrimapCurve
from fastseg.metrics.boundaries import contour, squared_distances, window_max

CLASSES, VOID = 4, 255
SIZES = ((1, 1), (1, 9), (9, 1), (2, 2), (11, 13), (17, 8))


def maps(size, seed=0, void=True):
    """Blobs and their copies, moved by a pixel or two and with holes."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(CLASSES - 1, (2, 4, 4), generator=generator).float()
    label = torch.nn.functional.interpolate(coarse[:, None], size, mode="nearest")[:, 0].long()
    prediction = label.roll((1, 2), (1, 2))
    noise = torch.rand(label.shape, generator=generator)
    prediction = torch.where(noise < 0.05, CLASSES - 1, prediction)
    if void:
        label = torch.where(noise > 0.93, VOID, label)
    return prediction, label


def pixels(mask):
    return list(zip(*np.nonzero(mask), strict=True))


def contour_of(ids, k):
    """Pixels of class k with another class beside them, in loops; -1 is void."""
    found = np.zeros(ids.shape, bool)
    height, width = ids.shape
    for y, x in pixels(ids == k):
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < height and 0 <= u < width and ids[v, u] not in (-1, k):
                found[y, x] = True
    return found


def both(prediction, label):
    """The maps of each image as numpy arrays, -1 for void."""
    for p, t in zip(prediction.numpy(), label.numpy(), strict=True):
        void = t == VOID
        yield np.where(void, -1, p), np.where(void, -1, t)


def share_near(ones, others, distance):
    """The share of ones with one of the others within a distance."""
    if not ones:
        return 0.0
    near = [any(math.dist(a, b) <= distance for b in others) for a in ones]
    return sum(near) / len(near)


def boundary_f1(prediction, label, distance):
    """F1 of each class in each image; nan where it has no contour."""
    scores = np.full((len(label), CLASSES), np.nan)
    for i, (predicted, true) in enumerate(both(prediction, label)):
        for k in range(CLASSES):
            p, t = (pixels(contour_of(ids, k)) for ids in (predicted, true))
            if p or t:
                precision, recall = share_near(p, t, distance), share_near(t, p, distance)
                total = precision + recall
                scores[i, k] = 2 * precision * recall / total if total else 0
    return scores


def nanmean(values, axis=None):
    values = np.asarray(values, float)
    counted = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(counted, values, 0).sum(axis) / counted.sum(axis)


@pytest.mark.parametrize("distance", [0.5, 1, math.sqrt(2), 1.5, 2, 3.7, 30])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boundary_f1(size, distance):
    scores = []
    metric = BoundaryF1(CLASSES, VOID, tolerance=distance, unit="pixels")
    for seed in range(3):
        prediction, label = maps(size, seed)
        scores.append(boundary_f1(prediction, label, distance))
        metric.update(prediction, label)
    expected = np.concatenate(scores)
    np.testing.assert_allclose(metric.f1_scores().numpy(), nanmean(expected, 0))
    mean = nanmean(nanmean(expected, 1))
    np.testing.assert_allclose(metric.mean_f1(), mean)
    np.testing.assert_allclose(metric.compute()["boundary_f1"], mean)


def test_a_tolerance_is_a_share_of_the_diagonal():
    prediction, label = maps((30, 40))
    by_share = BoundaryF1(CLASSES, VOID, tolerance=0.04)
    by_pixels = BoundaryF1(CLASSES, VOID, tolerance=2, unit="pixels")
    for metric in (by_share, by_pixels):
        metric.update(prediction, label)
    assert by_share.mean_f1() == by_pixels.mean_f1()


def test_one_contour_alone_scores_zero():
    label = torch.zeros(8, 8, dtype=torch.int64)
    square = label.clone()
    square[2:5, 2:5] = 1
    for pair in ((square, label), (label, square)):
        metric = BoundaryF1(2, tolerance=100, unit="pixels")
        metric.update(*pair)
        assert metric.mean_f1() == 0
    metric.reset()
    metric.update(label, label)  # no contour at all
    assert math.isnan(metric.mean_f1())


def eroded_away(ids, k, distance):
    """The band of class k: what erosions with a 3x3 square take, one after another."""
    inside = np.pad((ids == k) | (ids == -1), 1)
    whole = ids == k
    for _ in range(distance):
        shifts = itertools.product((-1, 0, 1), repeat=2)
        inside = np.logical_and.reduce([np.roll(inside, s, (0, 1)) for s in shifts])
        inside[[0, -1]] = inside[:, [0, -1]] = False
    return whole & ~inside[1:-1, 1:-1]


@pytest.mark.parametrize("distance", [1, 2, 3, 20])
@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_boundary_iou(size, void, distance):
    prediction, label = maps(size, void=void)
    metric = BoundaryIoU(CLASSES, VOID, distance=distance, unit="pixels")
    metric.update(prediction, label)
    common, total = np.zeros(CLASSES), np.zeros(CLASSES)
    for predicted, true in both(prediction, label):
        for k in range(CLASSES):
            p, t = (eroded_away(ids, k, distance) for ids in (predicted, true))
            common[k] += (p & t).sum()
            total[k] += (p | t).sum()
    with np.errstate(invalid="ignore"):
        expected = common / total
    np.testing.assert_allclose(metric.ious().numpy(), expected)
    np.testing.assert_allclose(metric.compute()["boundary_iou"], nanmean(expected))
    assert metric.mean_iou(absent=1) == pytest.approx(np.nan_to_num(expected, nan=1).mean())


def test_a_band_over_everything_gives_the_iou():
    prediction, label = maps((20, 30))
    bands, whole = BoundaryIoU(CLASSES, VOID, distance=1.0), ConfusionMatrix(CLASSES, VOID)
    for metric in (bands, whole):
        metric.update(prediction, label)
    torch.testing.assert_close(bands.ious(), whole.ious(), equal_nan=True)


def test_a_distance_is_rounded_to_pixels_and_at_least_one():
    prediction, label = maps((30, 40))  # a diagonal of 50
    for share, side in ((0.001, 1), (0.02, 1), (0.034, 2), (0.06, 3)):
        scores = []
        for options in ({"distance": share}, {"distance": side, "unit": "pixels"}):
            metric = BoundaryIoU(CLASSES, VOID, **options)
            metric.update(prediction, label)
            scores.append(metric.mean_iou())
        assert scores[0] == scores[1]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_trimap_curve(size):
    widths = (1, 2, 3, 7)
    metric = TrimapCurve(CLASSES, VOID, widths=widths)
    expected = {width: ConfusionMatrix(CLASSES, VOID) for width in widths}
    for seed in range(2):
        prediction, label = maps(size, seed)
        metric.update(prediction, label)
        for p, (_, true) in zip(prediction, both(prediction, label), strict=True):
            edge = [q for k in range(CLASSES) for q in pixels(contour_of(true, k))]
            for width in widths:
                band = np.full(true.shape, VOID)
                for y, x in pixels(true != -1):
                    if any(math.dist((y, x), q) <= width - 1 for q in edge):
                        band[y, x] = true[y, x]
                expected[width].update(p, torch.from_numpy(band))
    scores = metric.compute()
    for width in widths:
        assert torch.equal(metric.within(width).counts, expected[width].counts)
        for name in ("mean_iou", "pixel_accuracy"):
            value = expected[width].compute()[name]
            assert scores[f"{name}_within_{width}"] == pytest.approx(value, nan_ok=True)


def test_bands_of_a_straight_boundary():
    """As many columns on each side as the width says."""
    label = torch.arange(20).repeat(5, 1) // 10
    metric = TrimapCurve(2, widths=(1, 2, 5))
    metric.update(label, label)
    assert [int(metric.within(w).counts.sum()) for w in (1, 2, 5)] == [10, 20, 50]


@pytest.mark.parametrize("size", [(1, 1), (6, 40), (40, 6), (31, 33)], ids=str)
@pytest.mark.parametrize("most", [0, 1, 4, 60])
def test_squared_distances(size, most):
    mask = torch.rand(2, *size, generator=torch.Generator().manual_seed(0)) < 0.01
    mask[0, -1, 0] = True
    found = squared_distances(mask, most)
    y, x = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    for image, distances in zip(mask, found, strict=True):
        edge = image.nonzero()
        expected = torch.full(size, 10**6)
        for row, column in edge.tolist():
            expected = torch.minimum(expected, (y - row) ** 2 + (x - column) ** 2)
        within = expected <= most**2
        assert torch.equal(distances <= most**2, within)
        assert torch.equal(distances.long()[within], expected[within])


def test_helpers_of_one_row():
    labels = torch.tensor([[[0, 0, 1, -1, 2, 2]]])
    assert contour(labels).int().tolist() == [[[0, 1, 1, 0, 0, 0]]]
    assert window_max(labels, 1).tolist() == [[[0, 1, 1, 2, 2, 2]]]


METRICS = (BoundaryF1, BoundaryIoU, TrimapCurve)


@pytest.mark.parametrize("kind", METRICS)
def test_maps_of_one_image_and_other_dtypes(kind):
    prediction, label = maps((12, 13))
    batch, single = kind(CLASSES, VOID), kind(CLASSES, VOID)
    batch.update(prediction, label)
    for p, t in zip(prediction, label, strict=True):
        single.update(p.to(torch.uint8), t.to(torch.int16))
    assert single.compute() == pytest.approx(batch.compute())


@pytest.mark.parametrize("kind", METRICS)
def test_binary_masks_with_an_ignored_id(kind):
    masks = [ids > 1 for ids in maps((12, 13), void=False)]
    of_masks, of_ids = kind(2, VOID), kind(2, VOID)
    of_masks.update(*masks)
    of_ids.update(*(mask.long() for mask in masks))
    assert of_masks.compute() == of_ids.compute()


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 4, 5), (2, 0, 5), (2, 4, 0)], ids=str)
def test_maps_without_pixels_count_nothing(kind, shape):
    metric, empty = kind(CLASSES, VOID), torch.zeros(shape, dtype=torch.int64)
    metric.update(empty, empty)
    assert all(math.isnan(score) for score in metric.compute().values())


@pytest.mark.parametrize("far", [200, 1e5, 1e30])
def test_distances_beyond_an_image_are_all_of_it(far):
    """They take no more time or memory than the image's own; 1e5 rows would take a minute."""
    prediction, label = maps((30, 40))
    for kind, name in ((BoundaryF1, "tolerance"), (BoundaryIoU, "distance")):
        scores = []
        for distance in (50, far):
            metric = kind(CLASSES, VOID, **{name: distance}, unit="pixels")
            metric.update(prediction, label)
            scores.append(metric.compute())
        assert scores[0] == scores[1]


@pytest.mark.parametrize("width", [100, 2**15, 2**16, 2**40])
def test_bands_wider_than_an_image(width):
    prediction, label = maps((30, 40))
    label[1] = 0  # this image has no boundary, and so no band
    whole, metric = ConfusionMatrix(CLASSES, VOID), TrimapCurve(CLASSES, VOID, widths=(width,))
    whole.update(prediction[0], label[0])
    metric.update(prediction, label)
    assert torch.equal(metric.within(width).counts, whole.counts)


@pytest.mark.parametrize("kind", METRICS)
def test_bad_maps(kind):
    metric, zeros = kind(3), torch.zeros(1, 4, 5, dtype=torch.int64)
    for prediction, label, error, words in (
        (zeros.float(), zeros, TypeError, "prediction must hold integer class ids, got"),
        (zeros.numpy(), zeros, TypeError, "prediction must be a tensor, got ndarray"),
        (zeros, zeros.tolist(), TypeError, "label must be a tensor, got list"),
        (zeros, zeros[..., 1:], ValueError, r"one shape, got \(1, 4, 5\) and \(1, 4, 4\)"),
        (zeros[None], zeros[None], ValueError, r"must be \(H, W\) or \(N, H, W\), got \(1, 1, 4"),
        (zeros + 3, zeros, ValueError, "prediction must hold ids 0 to 2, got 3 to 3"),
        (zeros, zeros - 1, ValueError, "label must hold ids 0 to 2, got -1 to -1"),
    ):
        with pytest.raises(error, match=words):
            metric.update(prediction, label)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BoundaryF1(3, tolerance=0), "tolerance must be positive and finite, got 0"),
        (lambda: BoundaryF1(3, tolerance=math.inf), "tolerance must be positive"),
        (lambda: BoundaryF1(3, unit="metres"), "unit must be 'diagonal' or 'pixels', got 'metres'"),
        (lambda: BoundaryIoU(3, distance=-1), "distance must be positive and finite, got -1"),
        (lambda: TrimapCurve(3, widths=()), r"widths must be whole numbers from 1 up, got \(\)"),
        (lambda: TrimapCurve(3, widths=(4, 0)), r"widths must be .* got \(4, 0\)"),
        (lambda: BoundaryF1(0), "num_classes must be at least 1, got 0"),
        (lambda: BoundaryF1(3, tolerance=3), "tolerance must be at most 1, .* unit='pixels'"),
        (lambda: BoundaryIoU(3, distance=2), "distance must be at most 1, .* unit='pixels'"),
    ],
)
def test_bad_options(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BoundaryF1(3, tolerance="3"), "tolerance must be a number, got '3'"),
        (lambda: TrimapCurve(3, widths=(1, 2.5)), r"widths must be an integer, got 2\.5"),
        (lambda: ConfusionMatrix(3.0), r"num_classes must be an integer, got 3\.0"),
        (lambda: ConfusionMatrix(None), "num_classes must be an integer, got None"),
        (lambda: BoundaryIoU(3, [255]), r"ignore_index must be an integer, got \[255\]"),
    ],
)
def test_options_of_another_type(make, words):
    with pytest.raises(TypeError, match=words):
        make()
