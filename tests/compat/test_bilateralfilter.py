"""The SWIG module's functions: argument order, layouts of arrays, results, what is refused."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from fastseg.compat import bilateralfilter as module
from fastseg.compat.bilateralfilter import bilateralfilter, bilateralfilter_batch
from fastseg.ops import bilateral_filter
from tests.crf.test_bilateral_filter import photo

N, K, H, W = 3, 2, 13, 17
IMAGES = photo(N, 3, H, W).numpy().ravel()
INS = torch.rand(N, K, H, W).numpy().ravel()


def expected(sigmargb=15.0, sigmaxy=40.0):
    values, images = torch.from_numpy(INS), torch.from_numpy(IMAGES)
    filtered = bilateral_filter(values.view(N, K, H, W), images.view(N, 3, H, W), sigmaxy, sigmargb)
    return filtered.numpy().ravel()


def test_a_batch_is_written_in_place():
    outs = np.full(N * K * H * W, 7, np.float32)
    assert bilateralfilter_batch(IMAGES, INS, outs, N, K, H, W, 15.0, 40.0) is None
    np.testing.assert_array_equal(outs, expected())


def test_images_one_by_one():
    outs = np.zeros(N * K * H * W, np.float32)
    for image, values, out in zip(*(a.reshape(N, -1) for a in (IMAGES, INS, outs)), strict=True):
        assert bilateralfilter(image, values, out, H, W, 15.0, 40.0) is None
    np.testing.assert_array_equal(outs, expected())


def test_the_names_are_those_of_the_swig_module():
    """For calls by keyword; SWIG writes an underscore before Python's word."""
    names = ["images", "ins", "outs", "N", "K", "H", "W", "sigmargb", "sigmaxy"]
    assert list(inspect.signature(bilateralfilter_batch).parameters) == names
    names = ["image", "_in", "out", "H", "W", "sigmargb", "sigmaxy"]
    assert list(inspect.signature(bilateralfilter).parameters) == names
    assert module.__all__ == ["bilateralfilter", "bilateralfilter_batch"]


def test_what_float32_holds_is_taken():
    pixels = IMAGES.round().clip(0, 255)
    results = []
    for dtype in (np.float32, np.uint8, np.float16, np.int16):
        outs = np.zeros_like(INS)
        bilateralfilter_batch(pixels.astype(dtype), INS, outs, N, K, H, W, 15, 40)
        results.append(outs)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    outs, read_only = np.zeros_like(INS), INS.copy()
    read_only.flags.writeable = False
    bilateralfilter_batch(IMAGES, read_only, outs, np.int64(N), K, H, W, 15, np.float64(40))
    np.testing.assert_array_equal(outs, expected())


def test_the_result_may_overwrite_the_values():
    values = INS.copy()
    bilateralfilter_batch(IMAGES, values, values, N, K, H, W, 15, 40)
    np.testing.assert_array_equal(values, expected())


def test_no_planes_and_no_images():
    nothing = np.zeros(0, np.float32)
    bilateralfilter_batch(nothing, nothing, nothing, 0, K, H, W, 15, 40)
    bilateralfilter_batch(IMAGES, nothing, nothing, N, 0, H, W, 15, 40)


def read_only():
    outs = np.zeros_like(INS)
    outs.flags.writeable = False
    return outs


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, IMAGES.astype(np.float64), TypeError, "images must be float32, or of a dtype that it"),
        (0, torch.from_numpy(IMAGES), TypeError, "images must be a numpy array, got a tensor"),
        (0, IMAGES.reshape(N, -1), ValueError, r"images must be flat, got shape \(3, 663\)"),
        (0, IMAGES[1:], ValueError, "images must have 9 planes of 13 x 17, 1989 values, got 1988"),
        (0, IMAGES * np.float32("nan"), RuntimeError, "features must be finite, got nan"),
        (1, INS[:-1], ValueError, "ins must have 6 planes of 13 x 17, 1326 values, got 1325"),
        (1, INS.astype(np.int32), TypeError, "ins must be float32, or of a dtype"),
        (2, INS[:-1], ValueError, "outs must have 6 planes"),
        (2, INS.astype(np.float64), TypeError, "outs must be a float32 array, got float64"),
        (2, list(INS), TypeError, "outs must be a float32 array, got list"),
        (2, INS.repeat(2)[::2], ValueError, "outs must be flat, contiguous and writable.*, not c"),
        (2, INS.reshape(N, -1), ValueError, "outs must be flat"),
        (2, read_only(), ValueError, "outs must be flat, contiguous and writable.*read-only"),
        (3, N + 1, ValueError, "images must have 12 planes of 13 x 17, 2652 values, got 1989"),
        (3, -1, ValueError, "N must not be negative, got -1"),
        (4, 2.0, TypeError, "K must be an integer, got 2.0"),
        (5, H + 1, ValueError, "images must have 9 planes of 14 x 17"),
        (7, 0, ValueError, "sigmargb must be positive and finite, got 0"),
        (7, "15", TypeError, "sigmargb must be a number, got '15'"),
        (8, float("inf"), ValueError, "sigmaxy must be positive and finite, got inf"),
        (8, 1e-60, ValueError, "sigmaxy must be positive and finite, got 1e-60"),
        (7, 1e-9, RuntimeError, "features must be smaller"),
    ],
)
def test_bad_input(position, value, error, message):
    arguments = [IMAGES, INS, np.zeros_like(INS), N, K, H, W, 15.0, 40.0]
    arguments[position] = value
    with pytest.raises(error, match=message):
        bilateralfilter_batch(*arguments)


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        (INS[: K * H * W - 1], (H, W), "_in must have whole planes of H . W = 221 values, got 441"),
        (INS[: K * H * W], (0, W), "_in must have whole planes of H . W = 0 values"),
        (INS[: H * W], (H, W), "out must have 1 planes of 13 x 17, 221 values, got 442"),
    ],
)
def test_bad_sizes_of_one_image(values, size, message):
    out = np.zeros(K * H * W, np.float32)
    with pytest.raises(ValueError, match=message):
        bilateralfilter(IMAGES[: 3 * H * W], values, out, *size, 15, 40)
