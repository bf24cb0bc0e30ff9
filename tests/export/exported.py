"""Segmenters with small networks that nobody trained."""

from __future__ import annotations

from fastseg.data.transforms import MEAN, STD
from fastseg.segment import Segmenter
from tests.models.small_models import build

CLASSES = ["sky", "road", "tree", "car", "person"]


def segmenter(name: str, channels: str = "RGB", **options) -> Segmenter:
    """A segmenter of a small network on torch's ops."""
    model = build(name, **{"backend": "torch", **options}).eval()
    palette = [[i, 2 * i, 3 * i] for i in range(len(CLASSES))]
    return Segmenter(model, name, CLASSES, palette, MEAN, STD, channels, 32)
