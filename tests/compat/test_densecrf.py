"""fastseg.compat.pydensecrf computes what pydensecrf does."""

import importlib

import numpy as np
import pytest

pytest.importorskip("fastseg._host", reason="the compiled library was not built")

import fastseg.compat.pydensecrf as dcrf
from fastseg import _host
from fastseg.compat.pydensecrf import utils
from tests.compat.densecrf_scripts import SCRIPTS, small_case, two_terms

TOLERANCE = 1e-4
PROBED = slice(55, None, 67)
# Computed by pydensecrf2 1.1: Q of label 1 at the points PROBED.
PYDENSECRF = {
    "readme_2d": [
        1e-06,
        0.000422,
        1.2e-05,
        7.1e-05,
        0.22863,
        0.999987,
        0.999306,
        0.000339,
        0.999992,
        0.999978,
        4e-06,
    ],
    "example_inference": [
        0.0,
        1e-06,
        4e-06,
        0.000108,
        6e-06,
        8e-06,
        2.5e-05,
        0.000147,
        0.999998,
        0.999936,
        8e-06,
    ],
    "sec_scaled": [
        1e-06,
        1e-06,
        3e-06,
        1.2e-05,
        3e-06,
        2e-06,
        2e-06,
        3e-05,
        0.999996,
        0.999992,
        2e-06,
    ],
    "crf_inference_label": [
        0.0,
        1e-06,
        1e-05,
        3.7e-05,
        3e-06,
        5.7e-05,
        5e-06,
        2.7e-05,
        0.999995,
        0.999897,
        3e-05,
    ],
    "deeplab": [
        0.000454,
        0.000451,
        0.027034,
        0.006508,
        0.001455,
        0.930359,
        0.002862,
        0.003025,
        0.996505,
        0.993332,
        0.00346,
    ],
    "non_rgb": [
        4.7e-05,
        0.000648,
        0.999945,
        0.999904,
        0.999742,
        0.000188,
        0.00038,
        0.751686,
        0.999642,
        0.999565,
        0.999077,
    ],
    "volume": [
        6e-06,
        0.019232,
        0.007461,
        0.995494,
        0.988402,
        0.843652,
        0.004204,
        0.000783,
        0.999977,
        0.999949,
        0.996213,
    ],
}
PYDENSECRF["readme_unary_object"] = PYDENSECRF["readme_2d"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_published_scripts(script):
    img, probs = small_case()
    q = script(dcrf, utils, img, probs)
    assert q.dtype == np.float32
    q = q.reshape(len(probs), -1)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(q[1, PROBED][:11], PYDENSECRF[script.__name__], atol=TOLERANCE)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.__name__)
def test_published_scripts_beside_pydensecrf(script):
    theirs = pytest.importorskip("pydensecrf.densecrf")
    their_utils = importlib.import_module("pydensecrf.utils")
    img, probs = small_case(33, 47, 7)
    expected = script(theirs, their_utils, img, probs)
    np.testing.assert_allclose(script(dcrf, utils, img, probs), expected, atol=TOLERANCE)


def test_channels_counted_from_the_end_and_labels_of_a_mask():
    img = small_case()[0]
    middle = np.moveaxis(img, 2, 1)
    expected = utils.create_pairwise_bilateral((3, 4), (5, 6, 7), middle, 1)
    from_end = utils.create_pairwise_bilateral((3, 4), (5, 6, 7), middle, -2)
    np.testing.assert_array_equal(from_end, expected)
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(
        utils.unary_from_labels(mask, 2, 0.7, zero_unsure=False),
        utils.unary_from_labels(mask.astype(int), 2, 0.7, zero_unsure=False),
    )


def test_kernel_types_do_not_matter():
    img, probs = small_case()
    energies = utils.unary_from_softmax(probs)
    results = [
        two_terms(dcrf, img, energies, (3, 3), (80, 13, 10), kernel=kernel).inference(3)
        for kernel in dcrf.KernelType
    ]
    assert all(np.array_equal(results[0], r) for r in results)


def test_steps_are_inference_and_take_any_q():
    img, probs = small_case()
    d = two_terms(dcrf, img, utils.unary_from_softmax(probs), (3, 3), (80, 13, 10))
    q, a, b = d.startInference()
    np.testing.assert_array_equal(q, d.inference(0))
    for _ in range(3):
        d.stepInference(q, a, b)
    np.testing.assert_allclose(q, d.inference(3), atol=1e-6)
    fortran, flat = np.asfortranarray(q), np.full_like(q, 0.2)
    d.stepInference(fortran, a, b)
    d.stepInference(flat, a, b)
    np.testing.assert_allclose(fortran, d.inference(4), atol=1e-6)
    assert np.abs(flat - fortran).max() > 0.01


def test_terms_and_unary_in_any_order_and_again():
    img, probs = small_case()
    energies = utils.unary_from_softmax(probs)
    first = two_terms(dcrf, img, energies, (3, 3), (80, 13, 10)).inference(3)
    height, width = img.shape[:2]
    d = dcrf.DenseCRF2D(width, height, len(probs))
    d.addPairwiseGaussian(sxy=3, compat=3)
    copied = energies.copy()
    d.setUnaryEnergy(copied)
    copied[:] = 0  # it was copied
    d.inference(1)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=img, compat=10)
    np.testing.assert_array_equal(d.inference(3), first)
    np.testing.assert_array_equal(d.inference(3), first)
    d.setUnary(dcrf.LogisticUnary(np.eye(5, dtype=np.float32), energies))
    np.testing.assert_array_equal(d.inference(3), first)


def test_without_unary_all_labels_are_equal():
    d = dcrf.DenseCRF2D(4, 3, 5)
    d.addPairwiseGaussian(sxy=3, compat=3)
    np.testing.assert_allclose(d.inference(2), np.full((5, 12), 0.2), atol=1e-6)
    q, a, b = d.startInference()
    d.stepInference(q, a, b)
    np.testing.assert_allclose(q, 0.2, atol=1e-6)


def test_infinite_energy_rules_a_label_out():
    img, probs = small_case()
    energies = utils.unary_from_softmax(probs)
    energies[2, ::3] = np.inf
    q = two_terms(dcrf, img, energies, (3, 3), (80, 13, 10)).inference(3)
    assert (q[2, ::3] == 0).all()
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_small_images_and_one_label(size):
    height, width = size
    image = np.zeros((height, width, 3), np.uint8)
    for labels in (1, 2):
        energies = np.zeros((labels, height * width), np.float32)
        q = two_terms(dcrf, image, energies, (3, 3), (80, 13, 10)).inference(2)
        np.testing.assert_allclose(q, 1 / labels, atol=1e-6)


def test_host_class_checks_shapes_itself():
    crf = _host.DenseCRF([3, 4], 2)
    with pytest.raises(ValueError, match=r"energies must be of shape \(2, 12\), got \(2, 11\)"):
        crf.set_unary(np.zeros((2, 11), np.float32))
    with pytest.raises(ValueError, match=r"compatibility must be of shape \(2,\), got \(3,\)"):
        crf.add_gaussian([3, 3], np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"image must be of shape \(3, 4, 3\), got \(3, 4\)"):
        crf.add_bilateral([3, 3], [1, 1, 1], np.zeros((3, 4), np.uint8), np.float32(1))
    with pytest.raises(ValueError, match="normalization must be 0 to 3, got 4"):
        crf.add_gaussian([3, 3], np.float32(1), 4)
    with pytest.raises(ValueError, match="size must be"):
        _host.DenseCRF([12], 2).add_gaussian([3, 3], np.float32(1))
