"""Segmentation of pictures by a network, with the preprocessing that its weights expect."""

from fastseg.segment.predictor import Predictor
from fastseg.segment.segmenter import Segmenter

__all__ = ["Predictor", "Segmenter"]
