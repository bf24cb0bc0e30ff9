"""Checkpoints of other projects: their keys, and the options that make outputs equal."""

from fastseg.zoo.backbone import load_backbone
from fastseg.zoo.load import SOURCES, from_checkpoint, load_checkpoint, recognise
from fastseg.zoo.report import LoadReport
from fastseg.zoo.source import Layout, Preprocessing, Source

__all__ = [
    "SOURCES",
    "Layout",
    "LoadReport",
    "Preprocessing",
    "Source",
    "from_checkpoint",
    "load_backbone",
    "load_checkpoint",
    "recognise",
]
