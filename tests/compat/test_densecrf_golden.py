"""fastseg.compat.pydensecrf against what pydensecrf computed, kept in the shared folder."""

import numpy as np
import pytest

pytest.importorskip("fastseg._host", reason="the compiled library was not built")

import fastseg.compat.pydensecrf as dcrf
from fastseg.compat.pydensecrf import utils
from tests.compat.densecrf_scripts import two_terms

TOLERANCE = 1e-4


def energies_of(logits_q):
    logits = logits_q.astype(np.float32) / 10
    return np.logaddexp.reduce(logits, axis=0) - logits


def test_golden_two_labels(shared_data):
    golden = np.load(shared_data("golden", "im1_2labels.npz"))
    unary = utils.unary_from_labels(golden["labels"], 2, gt_prob=0.7, zero_unsure=True)
    d = two_terms(dcrf, golden["image"], unary, (3, 3), (80, 13, 10))
    q, a, b = d.startInference()
    divergences = [d.klDivergence(q)]
    for step in range(1, 6):
        d.stepInference(q, a, b)
        divergences.append(d.klDivergence(q))
        if f"Q{step}" in golden:
            expected = golden[f"Q{step}"]
            np.testing.assert_allclose(q[:, golden["idx"]], expected, atol=TOLERANCE)
    np.testing.assert_allclose(divergences, golden["kl"], rtol=1e-5)
    np.testing.assert_allclose(d.inference(5), q, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "gaussian", "bilateral"),
    [("A", (3, 3), (80, 13, 10)), ("B", (3, 3), (49, 5, 4)), ("C", (1, 3), (67, 3, 4))],
)
def test_golden_21_labels(shared_data, name, gaussian, bilateral):
    golden = np.load(shared_data("golden", "voc_160x120_21labels.npz"))
    energies = energies_of(golden["logits_q"])
    d = two_terms(dcrf, golden["image"], energies, gaussian, bilateral)
    for iterations in (0, 1, 2, 5, 10):
        q = d.inference(iterations)
        expected = golden[f"{name}_pyd_Q{iterations}"]
        np.testing.assert_allclose(q[:, golden["idx"]], expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["none", "before", "after", "symmetric"])
def test_golden_normalizations(shared_data, name):
    golden = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    code = ("none", "before", "after", "symmetric").index(name)
    image, energies = golden["image"], energies_of(golden["logits_q"])
    d = two_terms(dcrf, image, energies, (3, 3), (30, 13, 10), normalization=code)
    for iterations in (1, 5):
        expected = golden[f"norm_{name}_Q{iterations}"]
        np.testing.assert_allclose(d.inference(iterations), expected, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["compat_vec", "compat_mat"])
def test_golden_compatibilities(shared_data, name):
    golden = np.load(shared_data("golden", "small_64x48_5labels.npz"))
    image, energies = golden["image"], energies_of(golden["logits_q"])
    d = dcrf.DenseCRF2D(image.shape[1], image.shape[0], 5)
    d.setUnaryEnergy(np.ascontiguousarray(energies.reshape(5, -1)))
    compat = golden[name].astype(np.float32)
    d.addPairwiseBilateral(sxy=30, srgb=13, rgbim=image, compat=compat)
    np.testing.assert_allclose(d.inference(5), golden[f"{name}_Q5"], atol=TOLERANCE)
