"""From a picture to a class map: a network with what its weights expect of a picture."""

from fastseg.segment.segmenter import Segmenter

__all__ = ["Segmenter"]
