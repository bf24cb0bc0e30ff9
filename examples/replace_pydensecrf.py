"""Refines noisy labels with a dense CRF twice: pydensecrf's interface, and fastseg's own.

    python examples/replace_pydensecrf.py

The first function is a script for pydensecrf in which only the imports are changed.
"""

from __future__ import annotations

import numpy as np
import torch

import fastseg
import fastseg.compat.pydensecrf as dcrf  # was: import pydensecrf.densecrf as dcrf
from fastseg.compat.pydensecrf.utils import unary_from_softmax  # was: pydensecrf.utils

LABELS = 3


def picture_and_labels(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns a picture, uint8 (H, W, 3), of three stripes with a wavy border, and its labels."""
    y, x = np.mgrid[:height, :width]
    labels = (LABELS * (x + 4 * np.sin(y / 5)) / width).clip(0, LABELS - 1).astype(int)
    colours = np.array([[200, 60, 60], [60, 180, 60], [60, 60, 200]])
    noise = np.random.default_rng(0).normal(0, 30, (height, width, 3))
    return (colours[labels] + noise).clip(0, 255).astype(np.uint8), labels


def noisy_probabilities(labels: np.ndarray) -> np.ndarray:
    """Returns what a bad network might say of the labels, float32 (L, H, W)."""
    scores = np.random.default_rng(1).normal(0, 1, (LABELS, *labels.shape))
    scores += 1.5 * (labels == np.arange(LABELS)[:, None, None])
    exponentials = np.exp(scores)
    return (exponentials / exponentials.sum(0)).astype(np.float32)


def by_pydensecrf(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns Q, (L, H, W), by pydensecrf's interface."""
    height, width = image.shape[:2]
    d = dcrf.DenseCRF2D(width, height, LABELS)
    d.setUnaryEnergy(unary_from_softmax(probabilities))
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=30, srgb=40, rgbim=image, compat=10)
    return np.array(d.inference(5)).reshape(LABELS, height, width)


def by_dense_crf(image: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns Q, (L, H, W), by one call, which takes batches and has gradients."""
    unary = -torch.from_numpy(probabilities).log()
    pixels = torch.from_numpy(image).permute(2, 0, 1)
    terms = [fastseg.PairwiseGaussian(3, 3), fastseg.PairwiseBilateral(30, 40, 10)]
    return fastseg.dense_crf(unary, pixels, terms, iterations=5, quality="compat").numpy()


def main(height: int = 120, width: int = 160) -> tuple[float, float, float]:
    """Returns the share of right pixels before and after, and how far the two ways are apart."""
    image, labels = picture_and_labels(height, width)
    probabilities = noisy_probabilities(labels)
    q = by_pydensecrf(image, probabilities)
    before, after = ((p.argmax(0) == labels).mean() for p in (probabilities, q))
    difference = np.abs(q - by_dense_crf(image, probabilities)).max()
    print(f"right pixels: {before:.1%} before, {after:.1%} after; the ways differ by {difference}")
    return before, after, difference


if __name__ == "__main__":
    main()
