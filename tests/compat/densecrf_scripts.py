"""What people's scripts do with pydensecrf, as functions of its two modules.

The bodies are those of published scripts; only file access is left out.
"""

from __future__ import annotations

import numpy as np


def readme_2d(dcrf, utils, img, probs):
    """The README of pydensecrf, short form."""
    labels, h, w = probs.shape
    d = dcrf.DenseCRF2D(w, h, labels)
    U = -np.log(probs)
    U = U.reshape((labels, -1))
    d.setUnaryEnergy(U.astype(np.float32))
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=img, compat=10)
    Q = d.inference(5)
    np.argmax(Q, axis=0).reshape((h, w))
    return np.array(Q)


def readme_unary_object(dcrf, utils, img, probs):
    """The README of pydensecrf: a Unary, all arguments spelled out."""
    labels, h, w = probs.shape
    d = dcrf.DenseCRF2D(w, h, labels)
    d.setUnary(dcrf.ConstUnary(np.ascontiguousarray(utils.unary_from_softmax(probs))))
    d.addPairwiseGaussian(
        sxy=(3, 3), compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
    )
    d.addPairwiseBilateral(
        sxy=(80, 80),
        srgb=(13, 13, 13),
        rgbim=img,
        compat=10,
        kernel=dcrf.DIAG_KERNEL,
        normalization=dcrf.NORMALIZE_SYMMETRIC,
    )
    return np.array(d.inference(5))


def example_inference(dcrf, utils, img, probs):
    """examples/inference.py of pydensecrf: annotation with unknown, generic features, steps."""
    anno = probs.argmax(0) + 1
    anno[::3, ::2] = 0
    colors, labels = np.unique(anno, return_inverse=True)
    n_labels = len(set(labels.flat)) - 1
    assert 0 in colors
    d = dcrf.DenseCRF(img.shape[1] * img.shape[0], n_labels)
    U = utils.unary_from_labels(labels, n_labels, gt_prob=0.7, zero_unsure=True)
    d.setUnaryEnergy(U)
    feats = utils.create_pairwise_gaussian(sdims=(3, 3), shape=img.shape[:2])
    d.addPairwiseEnergy(
        feats, compat=3, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
    )
    feats = utils.create_pairwise_bilateral(sdims=(80, 80), schan=(13, 13, 13), img=img, chdim=2)
    d.addPairwiseEnergy(
        feats, compat=10, kernel=dcrf.DIAG_KERNEL, normalization=dcrf.NORMALIZE_SYMMETRIC
    )
    Q = d.inference(5)
    MAP = np.argmax(Q, axis=0)
    assert MAP.shape == (img.shape[0] * img.shape[1],)
    Q, tmp1, tmp2 = d.startInference()
    for _ in range(5):
        d.klDivergence(Q)
        d.stepInference(Q, tmp1, tmp2)
    return np.array(Q)


def crf_inference(dcrf, utils, img, probs, t=10, scale_factor=1, labels=21):
    """SEC, PSA, IRN and their descendants."""
    h, w = img.shape[:2]
    n_labels = labels
    d = dcrf.DenseCRF2D(w, h, n_labels)
    unary = utils.unary_from_softmax(probs)
    unary = np.ascontiguousarray(unary)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3 / scale_factor, compat=3)
    d.addPairwiseBilateral(sxy=80 / scale_factor, srgb=13, rgbim=np.copy(img), compat=10)
    Q = d.inference(t)
    return np.array(Q).reshape((n_labels, h, w))


def sec_scaled(dcrf, utils, img, probs):
    """SEC at a twelfth of the scale."""
    return crf_inference(dcrf, utils, img, probs, t=10, scale_factor=12, labels=len(probs))


def crf_inference_label(dcrf, utils, img, probs, t=10, gt_prob=0.7):
    """IRN: from class activation maps turned into labels."""
    labels, n_labels = probs.argmax(0), len(probs)
    h, w = img.shape[:2]
    d = dcrf.DenseCRF2D(w, h, n_labels)
    unary = utils.unary_from_labels(labels, n_labels, gt_prob=gt_prob, zero_unsure=False)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(np.copy(img)), compat=10)
    q = d.inference(t)
    return np.array(q).reshape((n_labels, h, w))


def deeplab(dcrf, utils, img, probs):
    """deeplab-pytorch's libs/utils/crf.py."""
    C, H, W = probs.shape
    U = utils.unary_from_softmax(probs)
    U = np.ascontiguousarray(U)
    image = np.ascontiguousarray(img)
    d = dcrf.DenseCRF2D(W, H, C)
    d.setUnaryEnergy(U)
    d.addPairwiseGaussian(sxy=1, compat=3)
    d.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image, compat=4)
    Q = d.inference(10)
    return np.array(Q).reshape((C, H, W))


def non_rgb(dcrf, utils, img, probs):
    """pydensecrf's notebook "Non RGB Example": one channel, float image."""
    labels, h, w = probs.shape
    grey = (img[..., 0] / 255.0)[..., None]
    U = utils.unary_from_softmax(probs)
    pairwise_energy = utils.create_pairwise_bilateral(
        sdims=(10, 10), schan=(0.01,), img=grey, chdim=2
    )
    d = dcrf.DenseCRF2D(w, h, labels)
    d.setUnaryEnergy(U)
    d.addPairwiseEnergy(pairwise_energy, compat=10)
    Q, tmp1, tmp2 = d.startInference()
    for _ in range(5):
        d.stepInference(Q, tmp1, tmp2)
    return np.array(Q)


def volume(dcrf, utils, img, probs):
    """A 3-D CRF as segmentations of medical volumes use it."""
    labels, h, w = probs.shape
    vol = np.stack([img[..., 0], img[..., 1], img[..., 2]]).astype(np.float32)
    prob = np.stack([probs, np.roll(probs, 1, 1), np.roll(probs, 1, 2)], axis=1)
    d = dcrf.DenseCRF(3 * h * w, labels)
    d.setUnaryEnergy(utils.unary_from_softmax(prob))
    d.addPairwiseEnergy(utils.create_pairwise_gaussian(sdims=(1.0,) * 3, shape=vol.shape), compat=3)
    feats = utils.create_pairwise_bilateral(sdims=(5.0,) * 3, schan=(20.0,), img=vol)
    d.addPairwiseEnergy(feats, compat=10)
    return np.array(d.inference(5))


SCRIPTS = (
    readme_2d,
    readme_unary_object,
    example_inference,
    sec_scaled,
    crf_inference_label,
    deeplab,
    non_rgb,
    volume,
)


def small_case(h=24, w=31, labels=5):
    """An image and probabilities that are the same on every machine."""
    y, x = np.mgrid[:h, :w]
    img = np.stack([60 * (x // 9) + 3 * (y % 5), 50 * (y // 8) + x % 7, (x * y) % 64 + 90], -1)
    which = (x // 7 + 2 * (y // 6)) % labels
    noise = (x * 37 + y * 61 + x * y * 13) % 17
    scores = np.stack([1 + 3 * (which == k) + ((noise + 5 * k) % 11) / 3 for k in range(labels)])
    return img.astype(np.uint8), (scores / scores.sum(0)).astype(np.float32)


def two_terms(lib, image, energies, gaussian, bilateral, **options):
    """A DenseCRF2D with both terms."""
    height, width = image.shape[:2]
    d = lib.DenseCRF2D(width, height, len(energies))
    d.setUnaryEnergy(np.ascontiguousarray(energies.reshape(len(energies), -1), np.float32))
    sxy, compat = gaussian
    d.addPairwiseGaussian(sxy=sxy, compat=compat, **options)
    sxy, srgb, compat = bilateral
    d.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=compat, **options)
    return d
