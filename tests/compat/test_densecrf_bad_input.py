"""What fastseg.compat.pydensecrf refuses, and what it takes although pydensecrf does not."""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("fastseg._host", reason="the compiled library was not built")

import fastseg.compat.pydensecrf as dcrf
from fastseg import reference
from fastseg._core.pairwise import bilateral_features
from fastseg.compat.pydensecrf import utils

H, W, L = 4, 5, 3
N = H * W
U = np.zeros((L, N), np.float32)
IMAGE = np.zeros((H, W, 3), np.uint8)
FEATURES = np.zeros((2, N), np.float32)


def crf():
    d = dcrf.DenseCRF2D(W, H, L)
    d.setUnaryEnergy(U)
    return d


def with_value(array, value):
    array = array.copy()
    array.flat[7] = value
    return array


def all_labels_out():
    energies = U.copy()
    energies[:, 4] = np.inf
    return energies


def bilateral(image=IMAGE, sxy=80, srgb=13, compat=10, **options):
    return crf().addPairwiseBilateral(sxy, srgb, image, compat, **options)


def gaussian(sxy=3, compat=3, **options):
    return crf().addPairwiseGaussian(sxy, compat, **options)


BAD = {
    "no labels": (lambda: dcrf.DenseCRF2D(W, H, 0), ValueError, "nlabels must be at least 1"),
    "no points": (lambda: dcrf.DenseCRF(0, 2), ValueError, "nvar must be at least 1, got 0"),
    "negative width": (lambda: dcrf.DenseCRF2D(-W, H, 2), ValueError, "w must be at least 1"),
    "half a pixel": (lambda: dcrf.DenseCRF2D(2.5, H, 2), TypeError, "w must be an integer"),
    "word": (lambda: dcrf.DenseCRF("many", 2), TypeError, "nvar must be an integer, got 'many'"),
    "u None": (lambda: crf().setUnaryEnergy(None), TypeError, "u must be an array, got NoneType"),
    "u list": (lambda: crf().setUnaryEnergy([[0.0]]), TypeError, "u must be an array, got list"),
    "u float64": (
        lambda: crf().setUnaryEnergy(U.astype(np.float64)),
        ValueError,
        "u: Buffer dtype mismatch, expected float32 but got float64",
    ),
    "u 3-D": (
        lambda: crf().setUnaryEnergy(U.reshape(L, H, W)),
        ValueError,
        r"wrong number of dimensions \(expected 2, got 3\)",
    ),
    "u Fortran": (
        lambda: crf().setUnaryEnergy(np.asfortranarray(U)),
        ValueError,
        "u is not C-contiguous",
    ),
    "u strided": (
        lambda: crf().setUnaryEnergy(np.zeros((L, 2 * N), np.float32)[:, ::2]),
        ValueError,
        "u is not C-contiguous",
    ),
    "u transposed": (
        lambda: crf().setUnaryEnergy(np.zeros((N, L), np.float32)),
        ValueError,
        r"Bad shape for unary energy u \(Need \(3, 20\), got \(20, 3\)\)",
    ),
    "u empty": (
        lambda: crf().setUnaryEnergy(np.zeros((L, 0), np.float32)),
        ValueError,
        "Bad shape for unary energy",
    ),
    "u NaN": (lambda: crf().setUnaryEnergy(with_value(U, np.nan)), ValueError, "unary .*NaN"),
    "u -inf": (
        lambda: crf().setUnaryEnergy(with_value(U, -np.inf)),
        ValueError,
        "unary must not be -infinity",
    ),
    "u all +inf": (lambda: crf().setUnaryEnergy(all_labels_out()), ValueError, "unary .*finite"),
    "not a Unary": (lambda: crf().setUnary(U), TypeError, "u must be a Unary, got ndarray"),
    "logistic": (lambda: dcrf.LogisticUnary(U, U), ValueError, "f must have 20 rows"),
    "sxy zero": (lambda: gaussian(sxy=0), ValueError, r"sxy must be positive and finite"),
    "sxy negative": (lambda: gaussian(sxy=(3, -3)), ValueError, "sxy must be positive and finite"),
    "sxy NaN": (lambda: gaussian(sxy=np.nan), ValueError, "sxy must be positive and finite"),
    "sxy inf": (lambda: gaussian(sxy=np.inf), ValueError, "sxy must be positive and finite"),
    "sxy three": (lambda: gaussian(sxy=(3, 3, 3)), ValueError, "sxy must be a number or 2 of them"),
    "sxy text": (lambda: gaussian(sxy="34"), TypeError, "sxy must be a number or 2 of them"),
    "sxy None": (lambda: gaussian(sxy=None), TypeError, "sxy must be a number or 2 of them"),
    "sxy tiny": (lambda: gaussian(sxy=1e-30), ValueError, "features|too large|range"),
    "srgb zero": (lambda: bilateral(srgb=(1, 0, 1)), ValueError, "srgb must be positive"),
    "srgb two": (lambda: bilateral(srgb=(1, 2)), ValueError, "srgb must be a number or 3"),
    "image float": (
        lambda: bilateral(IMAGE.astype(np.float32)),
        ValueError,
        "rgbim: Buffer dtype mismatch, expected uint8 but got float32",
    ),
    "image mirrored": (lambda: bilateral(IMAGE[:, ::-1]), ValueError, "rgbim is not C-contiguous"),
    "image turned": (
        lambda: bilateral(np.zeros((W, H, 3), np.uint8)),
        ValueError,
        r"Need \(4, 5, 3\), got \(5, 4, 3\)",
    ),
    "image grey": (lambda: bilateral(IMAGE[..., 0].copy()), ValueError, "rgbim: .*dimensions"),
    "image RGBA": (
        lambda: bilateral(np.zeros((H, W, 4), np.uint8)),
        ValueError,
        "rgbim must have 3 channels, got 4; .*create_pairwise_bilateral",
    ),
    "compat float64": (
        lambda: gaussian(compat=np.ones(L)),
        ValueError,
        "compat: Buffer dtype mismatch, expected float32 but got float64",
    ),
    "compat size": (
        lambda: gaussian(compat=np.ones(L + 1, np.float32)),
        ValueError,
        r"compat must be a number, \(3,\) or \(3, 3\), got \(4,\)",
    ),
    "compat oblong": (
        lambda: gaussian(compat=np.ones((L, L + 1), np.float32)),
        ValueError,
        "compat must be",
    ),
    "compat cube": (
        lambda: gaussian(compat=np.ones((L, L, L), np.float32)),
        ValueError,
        "compat of dimension >2",
    ),
    "compat NaN": (lambda: gaussian(compat=np.nan), ValueError, "compat must be finite"),
    "compat huge": (
        lambda: gaussian(compat=1e30),
        ValueError,
        "compatibility must be finite and no larger than 1e20",
    ),
    "compat word": (lambda: gaussian(compat="x"), TypeError, "compat must be an array, got str"),
    "kernel": (lambda: gaussian(kernel=7), ValueError, "kernel must be one of CONST_KERNEL"),
    "normalization": (
        lambda: gaussian(normalization="symmetric"),
        ValueError,
        "normalization must be one of NO_NORMALIZATION",
    ),
    "features points": (
        lambda: crf().addPairwiseEnergy(FEATURES[:, :-1].copy(), 3),
        ValueError,
        r"Bad shape for pairwise energy features \(Need \(\?, 20\), got \(2, 19\)\)",
    ),
    "features none": (lambda: crf().addPairwiseEnergy(FEATURES[:0], 3), ValueError, "features"),
    "features nine": (
        lambda: crf().addPairwiseEnergy(np.zeros((9, N), np.float32), 3),
        ValueError,
        "features",
    ),
    "features NaN": (
        lambda: crf().addPairwiseEnergy(with_value(FEATURES, np.nan), 3),
        ValueError,
        "features",
    ),
    "features huge": (
        lambda: crf().addPairwiseEnergy(with_value(FEATURES, 1e30), 3),
        ValueError,
        "features",
    ),
    "niter negative": (lambda: crf().inference(-1), ValueError, "niter must not be negative"),
    "niter half": (lambda: crf().inference(2.5), TypeError, "niter must be an integer, got 2.5"),
    "Q float64": (
        lambda: crf().stepInference(np.zeros((L, N)), None, None),
        TypeError,
        "Q must be a float32 array, got float64",
    ),
    "Q shape": (
        lambda: crf().klDivergence(U.T.copy()),
        ValueError,
        r"Q must be of shape \(3, 20\)",
    ),
    "Q read-only": (
        lambda: crf().stepInference(np.broadcast_to(np.float32(0.3), (L, N)), None, None),
        ValueError,
        "Q must be writable",
    ),
    "learning": (lambda: crf().gradient(), NotImplementedError, "fastseg.dense_crf"),
    "gt_prob": (lambda: utils.unary_from_labels(IMAGE, 2, 1.0), ValueError, "gt_prob must be in"),
    "label too high": (
        lambda: utils.unary_from_labels(IMAGE + 3, 2, 0.7),
        ValueError,
        "labels must be 0 to 2 .*got 3 to 3",
    ),
    "label negative": (
        lambda: utils.unary_from_labels(np.array([-1, 0]), 2, 0.7, zero_unsure=False),
        ValueError,
        "labels must be 0 to 1",
    ),
    "labels float": (
        lambda: utils.unary_from_labels(np.zeros(3), 2, 0.7),
        TypeError,
        "labels must hold integers, got float64",
    ),
    "scale": (lambda: utils.unary_from_softmax(U, scale=2), ValueError, "scale must be in"),
    "softmax scalar": (lambda: utils.unary_from_softmax(0.5), ValueError, "sm must have labels"),
    "sdims few": (
        lambda: utils.create_pairwise_gaussian((3,), (4, 5)),
        ValueError,
        r"sdims must have one entry for each axis \(2\)",
    ),
    "sdims one for all": (
        lambda: utils.create_pairwise_gaussian(3, (4, 5)),
        ValueError,
        r"sdims must have one entry for each axis \(2\), got 3",
    ),
    "sdims zero": (
        lambda: utils.create_pairwise_gaussian((0, 3), (4, 5)),
        ValueError,
        "sdims must be positive",
    ),
    "schan few": (
        lambda: utils.create_pairwise_bilateral((3, 3), (4,), IMAGE, 2),
        ValueError,
        "schan must have one entry for each channel",
    ),
    "chdim": (
        lambda: utils.create_pairwise_bilateral((3, 3), 4, IMAGE, 3),
        ValueError,
        "chdim must be an axis of img",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_and_named(case):
    call, error, message = BAD[case]
    with pytest.raises(error) as raised:
        call()
    assert raised.type is error
    assert re.search(message, str(raised.value)), str(raised.value)


def test_an_object_survives_what_it_refuses():
    d = crf()
    d.addPairwiseGaussian(3, 3)
    expected = d.inference(2)
    for bad in (with_value(U, np.nan), U[:, :-1].copy()):
        with pytest.raises(ValueError, match="unary"):
            d.setUnaryEnergy(bad)
    with pytest.raises(ValueError, match="features"):
        d.addPairwiseEnergy(with_value(FEATURES, np.inf), 3)
    np.testing.assert_array_equal(d.inference(2), expected)
    fresh = crf()
    fresh.addPairwiseGaussian(3, 3)
    for each in (d, fresh):
        each.addPairwiseEnergy(np.arange(2 * N, dtype=np.float32).reshape(2, N), 3)
        each.addPairwiseGaussian(0.5, 3)
    counts = [[each._crf.vertex_count(k) for k in range(3)] for each in (d, fresh)]
    assert counts[0] == counts[1]


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def test_read_only_arrays_buffers_and_numbers_of_numpy():
    d, expected = crf(), crf()
    energies = np.random.default_rng(0).random((L, N), np.float32)
    expected.setUnaryEnergy(energies)
    expected.addPairwiseGaussian(3, 3)
    expected.addPairwiseBilateral(80, 13, IMAGE, np.full(L, -2, np.float32))
    d.setUnaryEnergy(memoryview(read_only(energies)))
    d.addPairwiseGaussian(np.float32(3), np.int64(3))
    d.addPairwiseBilateral(
        [80, 80], np.array([13, 13, 13]), read_only(IMAGE), read_only(np.full(L, -2, np.float32))
    )
    np.testing.assert_array_equal(d.inference(np.int64(3)), expected.inference(3.0))


@pytest.mark.parametrize(
    ("size", "sxy", "srgb", "compat"),
    [
        ((H, W), 1e6, 1e6, 1),
        ((H, W), 1e-2, 13, 5),
        ((H, W), 80, 1e-2, 5),
        ((H, W), 3, 3, 1e4),
        ((H, W), 3, 3, -2),
        ((30000, 4), 80, 300, 3),
        ((4, 30000), 80, 300, 3),
    ],
)
def test_extreme_sizes_bandwidths_and_weights(size, sxy, srgb, compat):
    rng = np.random.default_rng(0)
    energies = rng.random((L, *size), np.float32) * 4
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    d = dcrf.DenseCRF2D(size[1], size[0], L)
    d.setUnaryEnergy(energies.reshape(L, -1))
    d.addPairwiseBilateral(sxy, srgb, image, compat)
    q = d.inference(2).reshape(energies.shape)

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    features = bilateral_features("", pixels, float(sxy), float(srgb), torch.float32)
    unary, weight = torch.from_numpy(energies)[None], torch.tensor(float(compat))
    expected = reference.lattice_mean_field(unary, [features], [weight], [3], 2, 0)
    np.testing.assert_allclose(q, expected[0], atol=1e-4)
