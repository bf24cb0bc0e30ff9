"""Metrics that score segmentations."""

from fastseg.metrics.confusion_matrix import ConfusionMatrix

__all__ = ["ConfusionMatrix"]
