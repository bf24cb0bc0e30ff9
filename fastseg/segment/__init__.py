"""Segmentation of a picture by a network, with the preprocessing that its weights expect."""

from fastseg.segment.segmenter import Segmenter

__all__ = ["Segmenter"]
